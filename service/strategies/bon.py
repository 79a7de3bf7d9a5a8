"""Best-of-N: draw N candidates of the policy, return the one with the highest reward."""

from __future__ import annotations

from typing import ClassVar

from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker, best


class Bon(Reranker):
    """Returns the candidate with the highest reward; among equals, the one with the lower index."""

    description: ClassVar[str] = "N samples, the one with the highest reward returned"

    def distribution(self, pool: CandidatePool) -> Float:
        """All probability on the highest reward."""
        return best(pool.rewards)
