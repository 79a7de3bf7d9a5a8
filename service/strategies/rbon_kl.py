"""RBoN with the KL term (arXiv 2404.01054): the reward plus a share of the log-likelihood."""

from __future__ import annotations

from typing import ClassVar

from service.strategies.protocol import Float
from service.strategies.regularised import RegularisedReranker
from service.strategies.rerank import CandidatePool, best


class RbonKl(RegularisedReranker):
    """Argmax of ``r + reg_strength * log p(y)``: ``-KL(delta_y || p)`` is ``log p(y)``.

    ``log p`` is of the whole completion in nats, so longer texts pay more.
    """

    description: ClassVar[str] = "N samples, the highest reward + reg_strength x log-likelihood"
    source: ClassVar[str] = "RBoN-KL, arXiv 2404.01054"
    uses_logprobs: ClassVar[bool] = True

    def distribution(self, pool: CandidatePool) -> Float:
        """All on the highest regularised reward."""
        return best(self.rewards(pool) + self.reg_strength * pool.logprobs)
