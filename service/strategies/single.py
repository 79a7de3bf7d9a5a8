"""Samples of the policy: the N = 1 baseline with ``ref``, vBoN with a distilled checkpoint."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

from service.strategies.collect import as_candidate, collect
from service.strategies.protocol import (
    Outcome,
    Resources,
    ScoredCandidate,
    Strategy,
    Task,
    tokens_of,
)
from vbon.concurrency import all_or_first_error
from vbon.engine import Partial
from vbon.errors import CandidateCountError


@dataclass(frozen=True, slots=True)
class _Streamed:
    """One streamed sample, with the ``perf_counter`` times of its steps and of its score."""

    scored: ScoredCandidate
    last: Partial
    times_s: tuple[float, ...]
    scored_s: float


class Single(Strategy):
    """Draws one sample, or as many as there are answers; scores them only to report rewards."""

    description: ClassVar[str] = "one sample of the policy"
    reranks: ClassVar[bool] = False

    def independent(self, num_samples: int) -> int:
        """All samples."""
        return num_samples

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Draw the samples, which are the answers."""
        if task.observer.follows_tokens:
            return await self._run_streamed(task, resources)
        scorer = resources.scorer if task.score else None
        collected = await collect(task, resources.engine, scorer, task.answers)
        return Outcome(
            collected.candidates[0],
            collected.candidates,
            collected.decode_ms,
            collected.rerank_ms,
            tokens_of(collected.candidates),
            returned=collected.candidates,
        )

    async def _run_streamed(self, task: Task, resources: Resources) -> Outcome:
        """Draw the same samples as streams, and report each step to the observer."""
        started = perf_counter()
        streamed = await all_or_first_error(
            _stream(task, resources, index) for index in range(task.answers)
        )
        candidates = tuple(one.scored for one in streamed)
        decoded = max(one.times_s[-1] for one in streamed)
        return Outcome(
            candidates[0],
            candidates,
            (decoded - started) * 1e3,
            (max(one.scored_s for one in streamed) - decoded) * 1e3,
            tokens_of(candidates) + sum(one.last.extra_tokens for one in streamed),
            step_times_s=streamed[0].times_s,
            returned=candidates,
            continued=sum(one.last.continued for one in streamed),
        )


async def _stream(task: Task, resources: Resources, index: int) -> _Streamed:
    times, partial = [], None
    stream = resources.engine.stream(
        task.prompt_token_ids, task.sampling, index, f"{task.request_id}-{index}"
    )
    async with aclosing(stream):
        async for partial in stream:
            times.append(perf_counter())
            task.observer.grown(partial)
    if partial is None:
        raise CandidateCountError(expected=1, received=0)
    candidate = as_candidate(partial)
    reward = None
    if task.score and resources.scorer is not None:
        reward = await resources.scorer.score(task.prompt, candidate.text)
    return _Streamed(ScoredCandidate(candidate, reward), partial, tuple(times), perf_counter())
