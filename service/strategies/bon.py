"""Best-of-N: draw N candidates of the reference policy, return the one with the highest reward."""

from __future__ import annotations

from collections.abc import Sequence

from bestofn.engine import Engine
from bestofn.errors import InvalidInputError, RewardError
from service.strategies.collect import collect
from service.strategies.protocol import Outcome, ScoredCandidate, Scorer, Task


def select_best(candidates: Sequence[ScoredCandidate]) -> ScoredCandidate:
    """The highest reward; the lower index among equals; candidates without a score are passed over.

    Raises:
        RewardError: if no candidate has a score.
    """
    scored = [(c.reward, -c.candidate.index, c) for c in candidates if c.reward is not None]
    if not scored:
        raise RewardError(f"none of the {len(candidates)} candidates could be scored")
    return max(scored, key=lambda item: item[:2])[2]


class BestOfN:
    """Argmax of the reward over N samples, each scored while the others decode."""

    description = "N samples of the policy, the one with the highest reward returned"
    reranks = True

    async def answer(self, task: Task, engine: Engine, scorer: Scorer | None) -> Outcome:
        """N candidates, the best of them."""
        if scorer is None:
            raise InvalidInputError(
                "best-of-N needs a reward model; none is configured", field="mode"
            )
        collected = await collect(task, engine, scorer, task.num_samples)
        return Outcome(
            select_best(collected.candidates),
            collected.candidates,
            collected.decode_ms,
            collected.rerank_ms,
        )
