r"""Stochastic RBoN with the Wasserstein term (arXiv 2502.12668): ``max_pi pi . r - b W1(p^, pi)``.

W1 is taken over the candidates with cost ``1 - sim``, p^ is uniform over them, and ``b = reg_strength``.
As stated this is a linear program in the N^2 variables of the transport plan. Because pi is free, however,
each candidate's share of p^ can be moved independently, and the program separates into N choices: candidate
i sends its 1/N to ``argmax_j r_j - b (1 - sim_ij)``. (Derived here; the tests compare it with a linear
program solver.)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from service.strategies.protocol import Float
from service.strategies.regularised import RegularisedReranker
from service.strategies.rerank import CandidatePool


class SrbonWd(RegularisedReranker):
    """Lets each candidate vote for one with a high reward similar to itself; draws one by the votes."""

    description: ClassVar[str] = "N samples, one drawn by votes of similar candidates"
    source: ClassVar[str] = "SRBoN-WD, arXiv 2502.12668"
    compares_texts: ClassVar[bool] = True

    def distribution(self, pool: CandidatePool) -> Float:
        """Each candidate's share of the votes; a tie goes to the lower index."""
        assert pool.similarity is not None
        gain = self.rewards(pool)[None, :] - self.reg_strength * (1.0 - pool.similarity)
        votes = np.bincount(gain.argmax(axis=1), minlength=len(pool.rewards))
        return votes / len(pool.rewards)
