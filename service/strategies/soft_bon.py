"""Soft best-of-N (arXiv 2505.03156): a candidate drawn by the softmax of the rewards."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from service.strategies.bounds import LEAST_SCALE, MOST_SCALE
from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker, softmax


class SoftBon(Reranker):
    """Returns candidate i with probability proportional to ``exp(r_i / reward_temperature)``.

    A temperature near 0 gives ``bon``, a high one ``ref``. As N grows, the answers' distribution approaches
    ``p exp(r / reward_temperature) / Z``, the optimum of KL-regularised RL.
    """

    description: ClassVar[str] = "N samples, one drawn by the softmax of their rewards"
    source: ClassVar[str] = "arXiv 2505.03156"

    reward_temperature: float = Field(
        1.0,
        ge=LEAST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="temperature in units of reward; towards 0 it becomes best-of-N",
    )

    def distribution(self, pool: CandidatePool) -> Float:
        """The softmax of the rewards at the temperature."""
        return softmax(pool.rewards / self.reward_temperature)
