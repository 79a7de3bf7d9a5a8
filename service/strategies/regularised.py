"""The base class of regularised best-of-N: a strength, and normalised rewards."""

from __future__ import annotations

from pydantic import Field

from service.strategies.bounds import MOST_SCALE
from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker, standardised


class RegularisedReranker(Reranker):
    """Trades the reward against a regulariser with weight ``reg_strength``."""

    reg_strength: float = Field(
        0.1,
        ge=0,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="weight of the regulariser; 0 turns it off",
    )
    normalise_rewards: bool = Field(
        True,
        description="normalise the candidates' rewards to mean 0 and standard deviation 1, so that one "
        "strength suits every reward model and prompt; false uses raw rewards, as the papers do",
    )

    def rewards(self, pool: CandidatePool) -> Float:
        """The rewards that the rule uses, shape ``(N,)``."""
        return standardised(pool.rewards) if self.normalise_rewards else pool.rewards
