"""Drawing candidates, and scoring each one while the others are still being decoded."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter

from service.strategies.protocol import ScoredCandidate, Scorer, Task
from vbon.engine import Candidate, Engine, Partial
from vbon.errors import CandidateCountError


@dataclass(frozen=True, slots=True)
class Collected:
    """All candidates in the order of their indices, with the times of each stage (``perf_counter``)."""

    candidates: tuple[ScoredCandidate, ...]
    started_s: float
    decoded_s: float
    scored_s: float

    @property
    def decode_ms(self) -> float:
        """Milliseconds from submission to the end of the last candidate."""
        return (self.decoded_s - self.started_s) * 1e3

    @property
    def rerank_ms(self) -> float:
        """Milliseconds of scoring after decoding had ended."""
        return (self.scored_s - self.decoded_s) * 1e3


async def collect(
    task: Task, engine: Engine, scorer: Scorer | None, num_samples: int, *, first_index: int = 0
) -> Collected:
    """Draw exactly ``num_samples`` candidates, and score them if there is a scorer.

    Each candidate is scored as soon as it is decoded; the task's observer is notified of both. Cancelling
    aborts the decoding and withdraws candidates that wait for their scores.

    Args:
        first_index: index of the first candidate; the others follow.

    Raises:
        CandidateCountError: the engine returned a different number of candidates.
    """

    async def score(candidate: Candidate, scorer: Scorer) -> float | None:
        reward = await scorer.score(task.prompt, candidate.text)
        task.observer.scored(ScoredCandidate(candidate, reward))
        return reward

    started = perf_counter()
    finished: list[Candidate] = []
    scoring: list[asyncio.Task[float | None]] = []
    try:
        stream = engine.generate(
            task.prompt_token_ids, task.sampling, num_samples, task.request_id, first_index
        )
        async with aclosing(stream):
            async for candidate in stream:
                finished.append(candidate)
                task.observer.finished(candidate)
                if scorer is not None:
                    scoring.append(asyncio.create_task(score(candidate, scorer)))
        decoded = perf_counter()
        expected = list(range(first_index, first_index + num_samples))
        if sorted(candidate.index for candidate in finished) != expected:
            raise CandidateCountError(expected=num_samples, received=len(finished))
        rewards: list[float | None] = [None] * num_samples
        if scorer is not None:
            rewards = list(await asyncio.gather(*scoring))
    finally:
        for pending in scoring:
            pending.cancel()
        # Await the other tasks too, so that asyncio does not warn about exceptions never retrieved.
        await asyncio.gather(*scoring, return_exceptions=True)
    pairs = zip(finished, rewards, strict=True)
    scored = sorted((ScoredCandidate(c, r) for c, r in pairs), key=lambda s: s.candidate.index)
    return Collected(tuple(scored), started, decoded, perf_counter())


def as_candidate(partial: Partial, *, rejected: bool = False) -> Candidate:
    """The candidate that a streamed sample has become."""
    return Candidate(
        index=partial.index,
        text=partial.text,
        token_ids=partial.token_ids,
        finish_reason="rejected" if rejected else partial.finish_reason or "length",
        token_logprobs=partial.token_logprobs,
    )
