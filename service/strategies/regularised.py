"""What the regularised kinds of best-of-N share: a strength, and rewards it can be shared across."""

from __future__ import annotations

from pydantic import Field

from service.strategies.bounds import MOST_SCALE
from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker, standardised


class RegularisedReranker(Reranker):
    """Trades the reward against something else, at a strength."""

    reg_strength: float = Field(
        0.1,
        ge=0,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="weight of the regulariser; 0: none",
    )
    normalise_rewards: bool = Field(
        True,
        description="bring the candidates' rewards to mean 0 and standard deviation 1 first, so that "
        "one strength suits every reward model and prompt; false: raw, as in the papers",
    )

    def rewards(self, pool: CandidatePool) -> Float:
        """As the rule uses them."""
        return standardised(pool.rewards) if self.normalise_rewards else pool.rewards
