"""Best-of-N: draw N candidates of the policy, return the one with the highest reward."""

from __future__ import annotations

from typing import ClassVar

from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker, best


class Bon(Reranker):
    """Argmax of the reward over N samples; the lower index among equals."""

    description: ClassVar[str] = "N samples, the one with the highest reward returned"

    def distribution(self, pool: CandidatePool) -> Float:
        """All on the highest reward."""
        return best(pool.rewards)
