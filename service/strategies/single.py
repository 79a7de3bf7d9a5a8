"""One sample of the policy: the N = 1 baseline with ``ref``, vBoN with a distilled checkpoint."""

from __future__ import annotations

from contextlib import aclosing
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
from vbon.errors import CandidateCountError


class Single(Strategy):
    """Draws one sample; scores it only to report the reward."""

    description: ClassVar[str] = "one sample of the policy"
    reranks: ClassVar[bool] = False

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Draw the one candidate, which is the answer."""
        if task.observer.follows_tokens:
            return await self._run_streamed(task, resources)
        scorer = resources.scorer if task.score else None
        collected = await collect(task, resources.engine, scorer, 1)
        return Outcome(
            collected.candidates[0],
            collected.candidates,
            collected.decode_ms,
            collected.rerank_ms,
            tokens_of(collected.candidates),
        )

    async def _run_streamed(self, task: Task, resources: Resources) -> Outcome:
        """Draw the same candidate as a stream, and report each step to the observer."""
        started = perf_counter()
        times = []
        partial = None
        stream = resources.engine.stream(
            task.prompt_token_ids, task.sampling, 0, f"{task.request_id}-0"
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
        scored = ScoredCandidate(candidate, reward)
        return Outcome(
            scored,
            (scored,),
            (times[-1] - started) * 1e3,
            (perf_counter() - times[-1]) * 1e3,
            len(candidate.token_ids),
            step_times_s=tuple(times),
        )
