"""Speculative rejection (arXiv 2410.20290): drop the worst partial candidates while decoding.

N candidates start; each time all that are left have reached a further ``check_tokens`` tokens, their
partial texts are scored and the lowest ``reject_fraction`` of them is aborted in the engine. The paper
rejects when the GPU's memory is nearly full; by tokens, neither the answer nor what is spent depends on
what else the engine is doing. Nothing waits for a decision: leaders decode on while the others catch
up, and what they decoded meanwhile is not looked at, so that one seed has one answer.
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
from service.strategies.rerank import highest, required_scorer, scored_only
from vbon.concurrency import all_or_first_error
from vbon.engine import Engine, Partial


class SpeculativeRejection(Strategy):
    """Best-of-N that decodes only the promising candidates to their end."""

    description: ClassVar[str] = "N samples begun, the worst given up while they decode"
    source: ClassVar[str] = "arXiv 2410.20290"

    reject_fraction: float = Field(
        0.5, gt=0, lt=1, description="share of what is left that each check gives up, at least one"
    )
    check_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST_COUNT,
        description="tokens between checks; default: an eighth of max_tokens; at least a 32nd of it",
    )
    keep: int = Field(1, ge=1, le=MOST_COUNT, description="candidates that are never given up")

    def fitted(self, num_samples: int, max_tokens: int) -> SpeculativeRejection:
        """No more checks than the server scores every candidate for."""
        if self.check_tokens is None:
            return self
        return self.model_copy(update={"check_tokens": self._every(max_tokens)})

    def _every(self, max_tokens: int) -> int:
        return step_tokens(self.check_tokens, max_tokens // 8, max_tokens)

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """A race; the best of those that finished."""
        scorer = required_scorer(resources.scorer, self.description)
        race = _Race(task, resources.engine, scorer)
        started = perf_counter()
        try:
            checks = await self._run(race, task)
            decoded = await race.finish()
        finally:
            await race.close()
        finished = perf_counter()
        candidates = tuple(runner.outcome() for runner in race.runners)
        survivors = scored_only([c for c in candidates if c.candidate.finish_reason != "rejected"])
        return Outcome(
            highest(survivors),
            candidates,
            (decoded - started) * 1e3,
            (finished - decoded) * 1e3,
            tokens_of(candidates),
            {"checks": checks, "finished": len(survivors)},
        )

    async def _run(self, race: _Race, task: Task) -> list[dict[str, int]]:
        """Check after check, until few enough are left or all have ended."""
        every = self._every(task.sampling.max_tokens)
        checks = []
        for tokens in range(every, task.sampling.max_tokens, every):
            if len(race.left) <= self.keep or all(r.ended_by(tokens - every) for r in race.left):
                break
            scores = await all_or_first_error(runner.score_at(tokens) for runner in race.left)
            given_up = self.rejected(scores, [runner.ended_by(tokens) for runner in race.left])
            await race.reject([race.left[i] for i in given_up])
            checks.append({"tokens": tokens, "rejected": len(given_up), "left": len(race.left)})
        return checks

    def rejected(self, scores: Sequence[float | None], ended: Sequence[bool]) -> list[int]:
        """Which to give up: the unfinished among the lowest; what has no score is left alone.

        A finished candidate keeps its place in the ranking, but giving it up would save nothing. A
        share too small for one counts as one: a check that gives up nobody was paid for nothing.
        """
        ranked = sorted(
            (i for i, score in enumerate(scores) if score is not None),
            key=lambda i: (-float(scores[i] or 0.0), i),
        )
        share = math.ceil(len(ranked) * (1 - self.reject_fraction))
        kept = max(self.keep, min(share, len(ranked) - 1))
        return [i for i in ranked[kept:] if not ended[i]]


@dataclass(eq=False)
class _Runner:
    """One candidate on its way."""

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
        return 0 if self.latest is None else len(self.latest.token_ids)

    def ended_by(self, tokens: int) -> bool:
        """Whether the whole of it has no more tokens than that."""
        ended = self.latest is not None and self.latest.finish_reason is not None
        return ended and self.tokens <= tokens

    async def score_at(self, tokens: int) -> float | None:
        """The reward of its first so many tokens (of all, if it has fewer), once they are there."""
        while not self.following.done() and self.tokens < tokens:
            self._moved.clear()
            moved = asyncio.create_task(self._moved.wait())
            try:
                await asyncio.wait({self.following, moved}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                moved.cancel()
        if self.following.done():
            self.following.result()  # raises what ended it
        assert self.latest is not None
        if self.ended_by(tokens):
            return await self._score(self.latest.text)
        first = list(self.latest.token_ids[:tokens])
        text = await self.engine.decode(self.task.prompt_token_ids, first)
        return await self._score(text)

    async def score_whole(self) -> float:
        """Wait for its end and score it; the moment it ended."""
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
        """Of a rejected one: text and reward at the check that gave it up, all tokens it cost."""
        latest = self.latest
        assert latest is not None
        candidate = replace(as_candidate(latest, rejected=self.rejected), text=self.text)
        return ScoredCandidate(candidate, self.reward)


class _Race:
    """All runners, and those still in it."""

    def __init__(self, task: Task, engine: Engine, scorer: Scorer) -> None:
        self.runners = [_Runner(i, task, engine, scorer) for i in range(task.num_samples)]
        self.left = list(self.runners)

    async def reject(self, runners: Sequence[_Runner]) -> None:
        """Abort them in the engine."""
        for runner in runners:
            runner.rejected = True
            runner.following.cancel()
        await asyncio.gather(*(runner.following for runner in runners), return_exceptions=True)
        for runner in runners:
            self._tell(runner)
        self.left = [runner for runner in self.left if not runner.rejected]

    async def finish(self) -> float:
        """Let the rest end, scoring each as it does; the moment the last one ended."""

        async def end(runner: _Runner) -> float:
            ended = await runner.score_whole()
            self._tell(runner)
            return ended

        return max(await all_or_first_error(end(runner) for runner in self.left))

    @staticmethod
    def _tell(runner: _Runner) -> None:
        scored = runner.outcome()
        runner.task.observer.finished(scored.candidate)
        runner.task.observer.scored(scored)

    async def close(self) -> None:
        """Abort whatever still decodes."""
        for runner in self.runners:
            runner.following.cancel()
        await asyncio.gather(*(runner.following for runner in self.runners), return_exceptions=True)
