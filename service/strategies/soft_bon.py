"""Soft best-of-N (arXiv 2505.03156): a candidate with a probability that grows with its reward."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from service.strategies.bounds import LEAST_SCALE, MOST_SCALE
from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker, softmax


class SoftBon(Reranker):
    """``P[i] ~ exp(r_i / reward_temperature)``: ``bon`` as it tends to 0, ``ref`` as it grows.

    As N grows this tends to ``p exp(r / reward_temperature) / Z``, what KL-regularised RL aims at.
    """

    description: ClassVar[str] = "N samples, one drawn by the softmax of their rewards"
    source: ClassVar[str] = "arXiv 2505.03156"

    reward_temperature: float = Field(
        1.0,
        ge=LEAST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="in units of reward; to 0: best-of-N",
    )

    def distribution(self, pool: CandidatePool) -> Float:
        """Softmax of the rewards."""
        return softmax(pool.rewards / self.reward_temperature)
