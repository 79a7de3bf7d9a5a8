r"""Stochastic RBoN with the KL term (arXiv 2502.12668): a candidate drawn by reward and likelihood.

The distribution pi over the candidates that maximises ``pi . r - b KL(pi || p^)``, with
``b = reg_strength``, is ``p^_i exp(r_i / b) / Z``. In the paper, p^ is the policy's probability of each
candidate, normalised; ``log_p`` chooses its distribution. Candidates drawn from the policy already occur
in proportion to p, so this weighting tilts the result towards p^2. With p^ uniform over the candidates
(``likelihood_weight`` 0) the strategy equals soft best-of-N.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from service.strategies.bounds import LEAST_SCALE, MOST_SCALE
from service.strategies.protocol import Float
from service.strategies.regularised import LikelihoodReranker
from service.strategies.rerank import CandidatePool, softmax


class SrbonKl(LikelihoodReranker):
    """Returns candidate i with probability ``~ p(y_i)^likelihood_weight exp(r_i / reg_strength)``."""

    description: ClassVar[str] = "N samples, one drawn by reward and likelihood"
    source: ClassVar[str] = "SRBoN-KL, arXiv 2502.12668"

    reg_strength: float = Field(
        0.1,
        ge=LEAST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="weight of the KL; towards 0 it becomes best-of-N",
    )
    likelihood_weight: float = Field(
        1.0, ge=0, le=1, description="power of p(y): 1 as in the paper, 0 for soft best-of-N"
    )

    def distribution(self, pool: CandidatePool) -> Float:
        """The softmax of ``r / reg_strength + likelihood_weight * log p(y)``."""
        tilt = self.likelihood_weight * pool.logprobs
        return softmax(self.rewards(pool) / self.reg_strength + tilt)
