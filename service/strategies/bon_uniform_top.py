"""A uniform draw from the best ceil(N / M) candidates (arXiv 2603.05739).

With k = ceil(N / M), its win rate against a single sample is (2N - k + 1) / (2 (N + 1)): best-of-M's at
N = M, and towards 1 - 1 / (2M) as N grows (.800, .833, .853, .869 at N = 4, 8, 16, 64 for M = 4; limit
.875). Best-of-N's goes to 1.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from service.strategies.bounds import MOST_COUNT
from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker


class BonUniformTop(Reranker):
    """Returns one of the ``ceil(N / effective_n)`` highest rewards, each with equal probability.

    More candidates estimate the same quantile better, instead of reaching further into the tail, where a
    proxy reward is wrong most often.
    """

    description: ClassVar[str] = "N samples, one drawn uniformly from the best ceil(N/effective_n)"
    source: ClassVar[str] = "arXiv 2603.05739"

    effective_n: int = Field(
        4, ge=1, le=MOST_COUNT, description="M: one of the best ceil(N/M) is returned"
    )

    def distribution(self, pool: CandidatePool) -> Float:
        """Equal probability on the best candidates; a tie at the boundary keeps the lower indices."""
        count = len(pool.rewards)
        kept = math.ceil(count / self.effective_n)
        order = np.argsort(-pool.rewards, kind="stable")
        weights = np.zeros(count)
        weights[order[:kept]] = 1 / kept
        return weights
