"""Speculative rejection (arXiv 2410.20290): abort the worst partial candidates during decoding.

N candidates start. Each time all remaining ones have reached another ``check_tokens`` tokens, their partial
texts are scored, and the lowest ``reject_fraction`` of them is aborted in the engine. The paper rejects when
GPU memory is nearly full; checking by tokens instead makes the answer and its cost independent of the
engine's other load. Decoding never pauses for a check: faster candidates continue while slower ones catch
up. A check ignores the tokens beyond its position, so one seed always gives the same answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import ClassVar

from pydantic import Field

from service.strategies.bounds import MOST_COUNT, step_tokens
from service.strategies.collect import as_candidate
from service.strategies.protocol import (
    Outcome,
    Resources,
    ScoredCandidate,
    Scorer,
    Strategy,
    Task,
    tokens_of,
)
from service.strategies.rerank import eligible, highest, required_scorer, scored_only
from vbon.concurrency import all_or_first_error
from vbon.engine import Engine, Partial


class SpeculativeRejection(Strategy):
    """Best-of-N that decodes only promising candidates to their end."""

    description: ClassVar[str] = "N samples, the worst rejected while they are decoded"
    source: ClassVar[str] = "arXiv 2410.20290"

    reject_fraction: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the remaining candidates that each check rejects, at least one",
    )
    check_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST_COUNT,
        description="tokens between checks; default: 1/8 of max_tokens; at least 1/32 of it",
    )
    keep: int = Field(
        1, ge=1, le=MOST_COUNT, description="number of best candidates that are never rejected"
    )

    def fitted(self, num_samples: int, max_tokens: int) -> SpeculativeRejection:
        """This strategy with ``check_tokens`` raised if it would make too many checks."""
        if self.check_tokens is None:
            return self
        return self.model_copy(update={"check_tokens": self._tokens_per_check(max_tokens)})

    def with_answers(self, answers: int) -> SpeculativeRejection:
        """This strategy with at least so many candidates kept to their end."""
        return self.model_copy(update={"keep": max(self.keep, answers)})

    def independent(self, num_samples: int) -> int:
        """None of the candidates, because rewards decide which ones are finished."""
        return 0

    def _tokens_per_check(self, max_tokens: int) -> int:
        return step_tokens(self.check_tokens, max_tokens // 8, max_tokens)

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Decode with checks, and choose the best of the candidates that were decoded to their end."""
        scorer = required_scorer(resources.scorer, self.description)
        growing = _GrowingCandidates(task, resources.engine, scorer)
        started = perf_counter()
        try:
            checks = await self._run_checks(growing, task)
            decoded = await growing.finish()
        finally:
            await growing.close()
        finished = perf_counter()
        candidates = tuple(candidate.outcome() for candidate in growing.candidates)
        whole = [c for c in candidates if c.candidate.finish_reason != "rejected"]
        survivors = eligible(whole, task.sampling)
        return Outcome(
            highest(survivors),
            candidates,
            (decoded - started) * 1e3,
            (finished - decoded) * 1e3,
            tokens_of(candidates) + growing.extra_tokens,
            {"checks": checks, "finished": len(scored_only(whole))},
            continued=growing.continued,
        )

    async def _run_checks(self, growing: _GrowingCandidates, task: Task) -> list[dict[str, int]]:
        """Check the candidates until only ``keep`` remain or all have ended; returns a record per check."""
        every = self._tokens_per_check(task.sampling.max_tokens)
        checks = []
        for tokens in range(every, task.sampling.max_tokens, every):
            remaining = growing.remaining
            if len(remaining) <= self.keep or all(c.ended_by(tokens - every) for c in remaining):
                break
            scores = await all_or_first_error(c.score_at(tokens) for c in remaining)
            rejected = self.rejected(scores, [c.ended_by(tokens) for c in remaining])
            await growing.reject([remaining[i] for i in rejected])
            checks.append(
                {"tokens": tokens, "rejected": len(rejected), "left": len(growing.remaining)}
            )
        return checks

    def rejected(self, scores: Sequence[float | None], ended: Sequence[bool]) -> list[int]:
        """The indices of the candidates to reject: the unfinished ones among the lowest scores.

        Finished candidates count in the ranking but are not rejected, which would save nothing. Candidates
        without a score are kept. At least one candidate falls under the cut, however small the fraction,
        because a check that rejects none costs its scoring for nothing.
        """
        ranked = sorted(
            (i for i, score in enumerate(scores) if score is not None),
            key=lambda i: (-float(scores[i] or 0.0), i),
        )
        share = math.ceil(len(ranked) * (1 - self.reject_fraction))
        kept = max(self.keep, min(share, len(ranked) - 1))
        return [i for i in ranked[kept:] if not ended[i]]


@dataclass(eq=False)
class _GrowingCandidate:
    """One candidate while it is decoded.

    Attributes:
        text: the text that was scored last; ``reward`` is its reward.
    """

    index: int
    task: Task
    engine: Engine
    scorer: Scorer
    following: asyncio.Task[None] = field(init=False)
    latest: Partial | None = None
    rejected: bool = False
    text: str = ""
    reward: float | None = None
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        stream = self.engine.stream(
            self.task.prompt_token_ids,
            self.task.sampling,
            self.index,
            f"{self.task.request_id}-{self.index}",
        )
        async with aclosing(stream):
            async for partial in stream:
                self.latest = partial
                self._moved.set()

    @property
    def tokens(self) -> int:
        """Number of tokens so far."""
        return 0 if self.latest is None else len(self.latest.token_ids)

    def ended_by(self, tokens: int) -> bool:
        """True if the candidate has ended with at most ``tokens`` tokens."""
        ended = self.latest is not None and self.latest.finish_reason is not None
        return ended and self.tokens <= tokens

    async def score_at(self, tokens: int) -> float | None:
        """Wait for the first ``tokens`` tokens, or the end if that comes first, and score their text."""
        while not self.following.done() and self.tokens < tokens:
            self._moved.clear()
            moved = asyncio.create_task(self._moved.wait())
            try:
                await asyncio.wait({self.following, moved}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                moved.cancel()
        if self.following.done():
            self.following.result()  # raises the error that ended decoding, if any
        assert self.latest is not None
        if self.ended_by(tokens):
            return await self._score(self.latest.text)
        first = list(self.latest.token_ids[:tokens])
        text = await self.engine.decode(self.task.prompt_token_ids, first)
        return await self._score(text)

    async def score_whole(self) -> float:
        """Wait for the end of the candidate and score it; returns when it ended (``perf_counter``)."""
        await self.following
        ended = perf_counter()
        assert self.latest is not None
        await self._score(self.latest.text)
        return ended

    async def _score(self, text: str) -> float | None:
        if text != self.text or self.reward is None:
            self.text = text
            self.reward = await self.scorer.score(self.task.prompt, text)
        return self.reward

    def outcome(self) -> ScoredCandidate:
        """The candidate with its reward.

        A rejected one has the text and reward of its last check, and all tokens that were decoded.
        """
        latest = self.latest
        assert latest is not None
        candidate = replace(as_candidate(latest, rejected=self.rejected), text=self.text)
        return ScoredCandidate(candidate, self.reward)


class _GrowingCandidates:
    """All candidates of a task, and the list of those not rejected."""

    def __init__(self, task: Task, engine: Engine, scorer: Scorer) -> None:
        self.candidates = [
            _GrowingCandidate(i, task, engine, scorer) for i in range(task.num_samples)
        ]
        self.remaining = list(self.candidates)

    @property
    def continued(self) -> int:
        """The number of times that candidates went on at another replica."""
        return sum(one.latest.continued for one in self.candidates if one.latest is not None)

    @property
    def extra_tokens(self) -> int:
        """The number of tokens that engines decoded beside those of the candidates."""
        return sum(one.latest.extra_tokens for one in self.candidates if one.latest is not None)

    async def reject(self, candidates: Sequence[_GrowingCandidate]) -> None:
        """Abort candidates in the engine."""
        for candidate in candidates:
            candidate.rejected = True
            candidate.following.cancel()
        await asyncio.gather(*(c.following for c in candidates), return_exceptions=True)
        for candidate in candidates:
            self._notify(candidate)
        self.remaining = [candidate for candidate in self.remaining if not candidate.rejected]

    async def finish(self) -> float:
        """Wait for the remaining candidates and score each one; returns when the last one ended."""

        async def end(candidate: _GrowingCandidate) -> float:
            ended = await candidate.score_whole()
            self._notify(candidate)
            return ended

        return max(await all_or_first_error(end(candidate) for candidate in self.remaining))

    @staticmethod
    def _notify(candidate: _GrowingCandidate) -> None:
        scored = candidate.outcome()
        candidate.task.observer.finished(scored.candidate)
        candidate.task.observer.scored(scored)

    async def close(self) -> None:
        """Abort everything that is still being decoded."""
        for candidate in self.candidates:
            candidate.following.cancel()
        await asyncio.gather(*(c.following for c in self.candidates), return_exceptions=True)
