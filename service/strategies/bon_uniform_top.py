"""Uniform among the best ceil(N / M) (arXiv 2603.05739): best-of-M's win rate, less over-optimised."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from service.strategies.bounds import MOST_COUNT
from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker


class BonUniformTop(Reranker):
    """One of the ``ceil(N / effective_n)`` highest rewards, each as likely as the others.

    Its win rate depends on the fraction kept, not on N: more candidates estimate the same quantile
    better instead of reaching further into the tail, where a proxy reward is wrong most often.
    """

    description: ClassVar[str] = "N samples, one drawn uniformly from the best ceil(N/effective_n)"
    source: ClassVar[str] = "arXiv 2603.05739"

    effective_n: int = Field(
        4, ge=1, le=MOST_COUNT, description="M: one of the best ceil(N/M) is returned"
    )

    def distribution(self, pool: CandidatePool) -> Float:
        """Equal on the best; ties at the boundary go to the lower indices."""
        count = len(pool.rewards)
        kept = math.ceil(count / self.effective_n)
        order = np.argsort(-pool.rewards, kind="stable")
        weights = np.zeros(count)
        weights[order[:kept]] = 1 / kept
        return weights
