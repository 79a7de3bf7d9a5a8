"""One sample of the policy: the N = 1 baseline for ``ref``, the product for a distilled checkpoint."""

from __future__ import annotations

from bestofn.engine import Engine
from service.strategies.collect import collect
from service.strategies.protocol import Outcome, Scorer, Task


class Single:
    """Draws once; scores the answer only to report it."""

    description = "one sample of the policy"
    reranks = False

    async def answer(self, task: Task, engine: Engine, scorer: Scorer | None) -> Outcome:
        """One candidate, which is the answer."""
        collected = await collect(task, engine, scorer if task.score else None, 1)
        return Outcome(
            collected.candidates[0], collected.candidates, collected.decode_ms, collected.rerank_ms
        )
