"""RBoN with the length term (arXiv 2502.12668): reward minus weighted inverse length."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from service.strategies.protocol import Float
from service.strategies.regularised import RegularisedReranker
from service.strategies.rerank import CandidatePool, best


class RbonLength(RegularisedReranker):
    """Returns the argmax of ``r - reg_strength / |y|``, |y| in tokens; penalises short completions."""

    description: ClassVar[str] = "N samples, the highest reward - reg_strength / tokens"
    source: ClassVar[str] = "RBoN-L, arXiv 2502.12668"

    def distribution(self, pool: CandidatePool) -> Float:
        """All probability on the highest regularised reward."""
        return best(self.rewards(pool) - self.reg_strength / np.maximum(pool.lengths, 1.0))
