r"""Stochastic RBoN with the Wasserstein term (arXiv 2502.12668): ``max_pi pi . r - b W1(p^, pi)``.

W1 is over the candidates with cost ``1 - sim``, p^ uniform over them. It looks like a linear program
of N^2 variables, the transport plan; but pi is free, so every candidate's share of p^ may go where it
likes and the program falls apart into N independent choices (derived here; a linear program solver
agrees in the tests): candidate i sends its 1/N to ``argmax_j r_j - b (1 - sim_ij)``.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from service.strategies.protocol import Float
from service.strategies.regularised import RegularisedReranker
from service.strategies.rerank import CandidatePool


class SrbonWd(RegularisedReranker):
    """Each candidate votes for the best reward within its reach; one is drawn by the votes."""

    description: ClassVar[str] = "N samples, one drawn by the votes of those that are like it"
    source: ClassVar[str] = "SRBoN-WD, arXiv 2502.12668"
    compares_texts: ClassVar[bool] = True

    def distribution(self, pool: CandidatePool) -> Float:
        """Share of the candidates that vote for each; ties go to the lower index."""
        assert pool.similarity is not None
        gain = self.rewards(pool)[None, :] - self.reg_strength * (1.0 - pool.similarity)
        votes = np.bincount(gain.argmax(axis=1), minlength=len(pool.rewards))
        return votes / len(pool.rewards)
