"""One sample of the policy: the N = 1 baseline for ``ref``, the product for a distilled checkpoint."""

from __future__ import annotations

from typing import ClassVar

from service.strategies.collect import collect
from service.strategies.protocol import Outcome, Resources, Strategy, Task, tokens_of


class Single(Strategy):
    """Draws once; scores the answer only to report it."""

    description: ClassVar[str] = "one sample of the policy"
    reranks: ClassVar[bool] = False

    async def answer(self, task: Task, resources: Resources) -> Outcome:
        """One candidate, which is the answer."""
        scorer = resources.scorer if task.score else None
        collected = await collect(task, resources.engine, scorer, 1)
        return Outcome(
            collected.candidates[0],
            collected.candidates,
            collected.decode_ms,
            collected.rerank_ms,
            tokens_of(collected.candidates),
        )
