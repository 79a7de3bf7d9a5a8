"""Inference-time pessimism (arXiv 2503.21878): weights ``relu((r - lambda) / reg_strength)`` of mean 1.

With ``b = reg_strength``, the policy ``p relu((r - lambda) / b)`` maximises the reward regularised by the
chi-squared divergence from p. The paper estimates lambda from N samples, and draws from that policy by
rejection from a second N, with the bound ``M = (R_max - lambda) / b``. Here the same N serve for both: the
answer is drawn from them with the weights, so nothing is rejected and half the samples are enough, but
answer and lambda are not independent.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from service.strategies.bounds import LEAST_SCALE, MOST_SCALE
from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker


class PessimisticBon(Reranker):
    """Returns a candidate with probability proportional to its reward's excess over a level lambda."""

    description: ClassVar[str] = (
        "N samples, one drawn in proportion to its reward's excess over a level"
    )
    source: ClassVar[str] = "InferenceTimePessimism, arXiv 2503.21878"

    reg_strength: float = Field(
        0.1,
        ge=LEAST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="weight of the regulariser; towards 0 it becomes best-of-N",
    )

    def distribution(self, pool: CandidatePool) -> Float:
        """``relu((r - lambda) / b) / N``, whose sum is 1 by the choice of lambda."""
        level = normalising_level(pool.rewards, self.reg_strength)
        weights = np.maximum(pool.rewards - level, 0.0)
        total: Float = weights / weights.sum()
        return total


def normalising_level(rewards: Float, reg_strength: float) -> float:
    """The exact lambda for which ``mean(relu((r - lambda) / b)) = 1``.

    If the k highest rewards are above lambda, ``lambda = (their sum - N b) / k``. The right k is the largest
    one whose lowest reward is still above its lambda.
    """
    descending = np.sort(rewards)[::-1]
    counts = np.arange(1, len(rewards) + 1)
    levels = (np.cumsum(descending) - len(rewards) * reg_strength) / counts
    above = np.flatnonzero(descending > levels)
    # The highest reward is above its own lambda, unless b is so small that rounding loses it.
    return float(levels[above[-1]]) if len(above) else float(np.nextafter(descending[0], -np.inf))
