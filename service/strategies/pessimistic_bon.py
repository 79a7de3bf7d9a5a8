"""Inference-time pessimism (arXiv 2503.21878): weights relu((r - lambda) / reg_strength), mean one.

That is the policy ``p relu((r - lambda) / b)``, the optimum of the reward regularised by the
chi-squared divergence from p, on the candidates at hand.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from service.strategies.bounds import LEAST_SCALE, MOST_SCALE
from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker


class PessimisticBon(Reranker):
    """Candidates above a level lambda, each in proportion to how far above it is."""

    description: ClassVar[str] = "N samples, one drawn by how far its reward is above a level"
    source: ClassVar[str] = "InferenceTimePessimism, arXiv 2503.21878"

    reg_strength: float = Field(
        0.1,
        ge=LEAST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="weight of the regulariser; to 0: best-of-N",
    )

    def distribution(self, pool: CandidatePool) -> Float:
        """``relu((r - lambda) / b) / N``, which sums to 1 by the choice of lambda."""
        level = normalising_level(pool.rewards, self.reg_strength)
        weights = np.maximum(pool.rewards - level, 0.0)
        total: Float = weights / weights.sum()
        return total


def normalising_level(rewards: Float, reg_strength: float) -> float:
    """The lambda at which ``mean(relu((r - lambda) / b)) = 1``, exactly.

    If the k highest lie above it, ``lambda = (their sum - N b) / k``; the k sought is the largest
    whose lowest member still lies above its lambda.
    """
    descending = np.sort(rewards)[::-1]
    counts = np.arange(1, len(rewards) + 1)
    levels = (np.cumsum(descending) - len(rewards) * reg_strength) / counts
    above = np.flatnonzero(descending > levels)
    # The highest reward lies above its own lambda unless b is lost in rounding beside it.
    return float(levels[above[-1]]) if len(above) else float(np.nextafter(descending[0], -np.inf))
