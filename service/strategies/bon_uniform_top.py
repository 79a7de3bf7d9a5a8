"""A uniform draw from the best ceil(N / M) candidates (arXiv 2603.05739).

It has about best-of-M's win rate, with less over-optimisation of the reward model.
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

    Its win rate depends on the fraction kept, not on N. More candidates estimate the same quantile better,
    instead of reaching further into the tail, where a proxy reward is wrong most often.
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
