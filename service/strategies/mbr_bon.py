"""MBR-BoN, also RBoN-WD (arXiv 2404.01054): the reward plus a share of the likeness to the others.

``-W1(delta_y, p^)`` with cost ``1 - sim`` is the mean similarity less one: minimum Bayes risk.
"""

from __future__ import annotations

from typing import ClassVar

from service.strategies.protocol import Float
from service.strategies.regularised import RegularisedReranker
from service.strategies.rerank import CandidatePool, best


class MbrBon(RegularisedReranker):
    """Argmax of ``r + reg_strength * mean_j sim(y, y_j)``."""

    description: ClassVar[str] = (
        "N samples, the highest reward + reg_strength x likeness to the rest"
    )
    source: ClassVar[str] = "MBR-BoN, arXiv 2404.01054"
    compares_texts: ClassVar[bool] = True

    def distribution(self, pool: CandidatePool) -> Float:
        """All on the highest regularised reward."""
        assert pool.similarity is not None
        return best(self.rewards(pool) + self.reg_strength * pool.similarity.mean(axis=1))
