r"""TreeBoN (arXiv 2410.16033): grow answers in layers and keep the most promising branches.

The first layer draws N partial answers of ``layer_tokens`` tokens. In each further layer, the best
1 / ``children`` of them get ``children`` continuations each, until all have ended. Partial answers are
ranked by their weighted implicit reward
``sum_k w_k [log q(y_k | y_<k) - log p(y_k | y_<k)] / sum_k w_k``, ``w_k = 1 / (k + 1)``, where q is a tuned
checkpoint (DPO in the paper; vBoN works as well) and p the policy that draws. The reward model scores only
finished answers, and chooses among them.

Two departures from the paper. A finished answer is a leaf for the final choice: it does not compete, and
the others get the remaining continuations, so there are N leaves in the end, whenever each one ended. And
the implicit reward is a mean, not a sum: log-ratios of tokens drawn from p are negative on average, so a
sum falls with length. Answers that compete have the same length here, and the order is the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import accumulate
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from service.strategies.bounds import MOST_COUNT, step_tokens
from service.strategies.protocol import (
    Outcome,
    Resources,
    ScoredCandidate,
    Scorer,
    Strategy,
    Task,
)
from service.strategies.rerank import highest, required_scorer, reshaped, scored_only
from vbon.concurrency import all_or_first_error
from vbon.engine import Candidate, Engine, FinishReason
from vbon.errors import InvalidInputError

# Bounds of the tree that an answer's details tell.
MOST_BRANCHES, MOST_CHARACTERS = 128, 60


@dataclass(frozen=True, slots=True)
class Branch:
    """A partial answer.

    Attributes:
        place: its number among all branches drawn, in the order of the layers; -1 for the prompt.
        parent: the place of the branch that it continues.
        layer: the layer that drew it, from 1.
        own_text: what it adds to its parent's text.
        logprobs: of each token, nats, as the engine tells them.
        finished: why it ended; ``None`` if it can be continued.
        worth: the implicit reward; 0 until it is computed.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: FinishReason | None
    worth: float = 0.0
    place: int = -1
    parent: int = -1
    layer: int = 0
    own_text: str = ""


class TreeBon(Strategy):
    """Tree search in layers, with N branches per layer."""

    description: ClassVar[str] = (
        "a tree of partial answers, pruned by a tuned checkpoint's log-ratio"
    )
    source: ClassVar[str] = "arXiv 2410.16033"
    uses_logprobs: ClassVar[bool] = True
    uses_policies: ClassVar[bool] = True
    continues: ClassVar[bool] = True

    children: int = Field(
        4, ge=2, le=1024, description="continuations of each partial answer that is kept; at most n"
    )
    layer_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST_COUNT,
        description="tokens per layer; default: 1/4 of max_tokens; at least 1/32 of it",
    )
    guide: str = Field("vbon", description="the tuned policy whose log-ratio ranks partial answers")

    def fitted(self, num_samples: int, max_tokens: int) -> TreeBon:
        """This strategy with at most N children, and ``layer_tokens`` raised to bound the layers."""
        update: dict[str, int] = {"children": min(self.children, num_samples)}
        if self.layer_tokens is not None:
            update["layer_tokens"] = self._layer(max_tokens)
        return self.model_copy(update=update)

    def _layer(self, max_tokens: int) -> int:
        return step_tokens(self.layer_tokens, max_tokens // 4, max_tokens)

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Grow the tree, and choose the leaf with the highest reward."""
        scorer = required_scorer(resources.scorer, self.description)
        started = perf_counter()
        tree = _Tree(task, resources.engine, self._guide_engine(resources))
        leaves = await self._grow(tree, task)
        decoded = perf_counter()
        candidates = [await tree.candidate(i, leaf) for i, leaf in enumerate(leaves)]
        scored = await _score_all(candidates, task, scorer)
        finished = perf_counter()
        details = {
            "layers": tree.layers,
            "guide": self.guide,
            "guide_tokens": tree.guide_tokens,
            "branches": tree.told(MOST_BRANCHES),
            "branches_left_out": max(0, len(tree.branches) - MOST_BRANCHES),
        }
        return Outcome(
            highest(scored_only(scored)),
            scored,
            (decoded - started) * 1e3,
            (finished - decoded) * 1e3,
            tree.generated_tokens,
            details,
        )

    def _guide_engine(self, resources: Resources) -> Engine:
        guide = resources.policies.get(self.guide)
        if guide is None or guide is resources.engine:
            others = [n for n, e in resources.policies.items() if e is not resources.engine]
            raise InvalidInputError(
                f"guide {self.guide!r} must be a policy of this server other than the one that draws; "
                f"available: {', '.join(others) or 'none'}",
                field="guide",
            )
        return guide

    async def _grow(self, tree: _Tree, task: Task) -> list[Branch]:
        layer = self._layer(task.sampling.max_tokens)
        grown = await tree.extend([Branch((), (), None)], [task.num_samples], layer)
        leaves: list[Branch] = []
        while True:
            leaves += [branch for branch in grown if branch.finished is not None]
            growing = [branch for branch in grown if branch.finished is None]
            if not growing:
                return leaves
            # As many continuations as branches, so leaves and branches together stay N.
            shares = shared_out(len(growing), math.ceil(len(growing) / self.children))
            kept = promising(await tree.with_worth(growing), len(shares))
            grown = await tree.extend(kept, shares, layer)


async def _score_all(
    candidates: Sequence[Candidate], task: Task, scorer: Scorer
) -> tuple[ScoredCandidate, ...]:
    async def score(candidate: Candidate) -> ScoredCandidate:
        reward = await scorer.score(task.prompt, candidate.text)
        scored = ScoredCandidate(candidate, reward)
        task.observer.scored(scored)
        return scored

    for candidate in candidates:
        task.observer.finished(candidate)
    return tuple(await all_or_first_error(score(candidate) for candidate in candidates))


def promising(branches: Sequence[Branch], count: int) -> list[Branch]:
    """The ``count`` branches of highest worth, best first; among equals, the earlier one."""
    order = sorted(range(len(branches)), key=lambda i: (-branches[i].worth, i))
    return [branches[i] for i in order[:count]]


def shared_out(total: int, parts: int) -> list[int]:
    """``total`` as a sum of ``parts`` numbers that differ by at most one, the larger ones first."""
    each, left = divmod(total, parts)
    return [each + (i < left) for i in range(parts)]


def implicit_reward(guide: Sequence[float], policy: Sequence[float]) -> float:
    """Mean of ``log q(y_k) - log p(y_k)`` with weights ``1 / (k + 1)``, k from 0, nats; 0 without tokens.

    Args:
        guide: ``log q`` of each token.
        policy: ``log p`` of each token.
    """
    ratios = np.subtract(guide, policy)
    if len(ratios) == 0:
        return 0.0
    return float(np.average(ratios, weights=1 / np.arange(1, len(ratios) + 1)))


class _Tree:
    """Extends and ranks the branches of one task, remembers them, and counts layers and tokens.

    Attributes:
        branches: all that were drawn, by place.
    """

    def __init__(self, task: Task, engine: Engine, guide: Engine) -> None:
        self._task, self._engine, self._guide = task, engine, guide
        self.branches: list[Branch] = []
        self._continued: set[int] = set()
        self.layers = 0
        self.generated_tokens = 0
        self.guide_tokens = 0

    async def extend(
        self, branches: Sequence[Branch], children: Sequence[int], tokens: int
    ) -> list[Branch]:
        """Draw ``children[i]`` continuations of branch i, each of at most ``tokens`` tokens."""
        self.layers += 1
        self._continued.update(branch.place for branch in branches)
        ends = list(accumulate(children, initial=len(self.branches)))
        grown = await all_or_first_error(
            self._extend(branch, count, tokens, first)
            for branch, count, first in zip(branches, children, ends[:-1], strict=True)
        )
        found = [
            replace(child, place=place, parent=branch.place, layer=self.layers)
            for branch, group, first in zip(branches, grown, ends[:-1], strict=True)
            for place, child in enumerate(group, first)
        ]
        self.branches += found
        return found

    async def _extend(
        self, branch: Branch, children: int, tokens: int, first_index: int
    ) -> list[Branch]:
        task = self._task
        left = task.sampling.max_tokens - len(branch.token_ids)
        stream = self._engine.generate(
            [*task.prompt_token_ids, *branch.token_ids],
            replace(
                task.sampling,
                max_tokens=min(tokens, left),
                min_tokens=min(tokens, left, self._least_tokens(branch)),
            ),
            children,
            f"{task.request_id}-{self.layers}-{first_index}",
            first_index,
        )
        found = []
        async with aclosing(stream):
            async for candidate in stream:
                found.append(candidate)
                self.generated_tokens += len(candidate.token_ids)
        found.sort(key=lambda candidate: candidate.index)
        return [await self._grown(branch, candidate) for candidate in found]

    def _least_tokens(self, branch: Branch) -> int:
        return max(0, self._task.sampling.min_tokens - len(branch.token_ids))

    async def _grown(self, branch: Branch, candidate: Candidate) -> Branch:
        ids = branch.token_ids + candidate.token_ids
        finished: FinishReason | None = None
        if candidate.finish_reason == "stop" or await self._stopped(ids):
            finished = "stop"
        elif len(ids) >= self._task.sampling.max_tokens:
            finished = "length"
        logprobs = branch.logprobs + (candidate.token_logprobs or ())
        return Branch(ids, logprobs, finished, own_text=candidate.text)

    async def with_worth(self, branches: Sequence[Branch]) -> list[Branch]:
        """The same branches with their worth computed."""
        ranked = await all_or_first_error(self._with_worth(i, b) for i, b in enumerate(branches))
        for branch in ranked:
            self.branches[branch.place] = branch
        return ranked

    async def _with_worth(self, index: int, branch: Branch) -> Branch:
        task = self._task
        self.guide_tokens += len(branch.token_ids)
        guided = await self._guide.logprobs(
            task.prompt_token_ids,
            list(branch.token_ids),
            f"{task.request_id}-{self.layers}-judge-{index}",
            task.sampling.priority,
        )
        own: Sequence[float] = branch.logprobs
        if self._engine.info.sampled_logprobs and reshaped(task.sampling):
            # Both sides of the ratio must be at temperature 1 and before top_p and top_k.
            own = await self._engine.logprobs(
                task.prompt_token_ids,
                list(branch.token_ids),
                f"{task.request_id}-{self.layers}-own-{index}",
                task.sampling.priority,
            )
        return replace(branch, worth=implicit_reward(guided, own))

    def told(self, most: int) -> list[dict[str, Any]]:
        """The first branches as JSON values: a parent comes before its children, a leaf has its candidate."""
        leaves = [branch.place for branch in self.branches if branch.finished is not None]
        candidate = {place: index for index, place in enumerate(leaves)}
        told = []
        for branch in self.branches[:most]:
            ended = branch.finished is not None
            state = "kept" if branch.place in self._continued else "dropped"
            told.append(
                {
                    "parent": branch.parent if branch.parent >= 0 else None,
                    "layer": branch.layer,
                    "tokens": len(branch.token_ids),
                    "text": branch.own_text[:MOST_CHARACTERS],
                    # JSON has no infinity, which a guide that excludes a token gives.
                    "log_ratio": None if ended or not math.isfinite(branch.worth) else branch.worth,
                    "state": "ended" if ended else state,
                    "candidate": candidate.get(branch.place),
                }
            )
        return told

    async def candidate(self, index: int, leaf: Branch) -> Candidate:
        """The candidate that a leaf makes."""
        text = await self._text(leaf)
        return Candidate(index, text, leaf.token_ids, leaf.finished or "length", leaf.logprobs)

    async def _text(self, branch: Branch) -> str:
        """The branch's text, decoded as a whole and cut at the first stop string."""
        ids, ending = branch.token_ids, self._task.sampling.stop_token_ids
        ended = branch.finished == "stop" and ids and ids[-1] in ending
        text = await self._decoded(ids[:-1] if ended else ids)
        ends = [text.find(stop) for stop in self._task.sampling.stop]
        return text[: min((end for end in ends if end >= 0), default=len(text))]

    async def _stopped(self, ids: tuple[int, ...]) -> bool:
        stops = self._task.sampling.stop
        if not stops:
            return False
        text = await self._decoded(ids)
        return any(stop in text for stop in stops)

    async def _decoded(self, ids: tuple[int, ...]) -> str:
        return await self._engine.decode(self._task.prompt_token_ids, list(ids))
