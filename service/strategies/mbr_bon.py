"""MBR-BoN, also called RBoN-WD (arXiv 2404.01054): reward plus mean similarity to the other candidates.

``-W1(delta_y, p^)`` with cost ``1 - sim`` equals the mean similarity minus one, the objective of minimum
Bayes risk decoding.
"""

from __future__ import annotations

from typing import ClassVar

from service.strategies.protocol import Float
from service.strategies.regularised import RegularisedReranker
from service.strategies.rerank import CandidatePool, best


class MbrBon(RegularisedReranker):
    """Returns the argmax of ``r + reg_strength * mean_j sim(y, y_j)``."""

    description: ClassVar[str] = (
        "N samples, the highest reward + reg_strength x similarity to the others"
    )
    source: ClassVar[str] = "MBR-BoN, arXiv 2404.01054"
    compares_texts: ClassVar[bool] = True

    def distribution(self, pool: CandidatePool) -> Float:
        """All probability on the highest regularised reward."""
        assert pool.similarity is not None
        return best(self.rewards(pool) + self.reg_strength * pool.similarity.mean(axis=1))
