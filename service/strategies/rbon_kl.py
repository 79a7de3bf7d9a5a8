"""RBoN with the KL term (arXiv 2404.01054): reward plus weighted log-likelihood."""

from __future__ import annotations

from typing import ClassVar

from service.strategies.protocol import Float
from service.strategies.regularised import LikelihoodReranker
from service.strategies.rerank import CandidatePool, best


class RbonKl(LikelihoodReranker):
    """Returns the argmax of ``r + reg_strength * log p(y)``, since ``-KL(delta_y || p) = log p(y)``.

    ``log p(y)`` is that of the whole completion, nats, so long completions are penalised more. ``log_p``
    chooses its distribution.
    """

    description: ClassVar[str] = "N samples, the highest reward + reg_strength x log-likelihood"
    source: ClassVar[str] = "RBoN-KL, arXiv 2404.01054"

    def distribution(self, pool: CandidatePool) -> Float:
        """All probability on the highest regularised reward."""
        return best(self.rewards(pool) + self.reg_strength * pool.logprobs)
