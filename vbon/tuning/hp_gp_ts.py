"""HP-GP-TS: Thompson sampling with Gaussian processes whose prior is drawn for each trial too.

Sandberg & Chehreghani 2025, Adaptive Prior Selection in Gaussian Process Bandits with Thompson Sampling
(arXiv 2502.01226). For each trial and outcome: draw a prior with probability proportional to its own
probability times its marginal likelihood, draw a function from its posterior, propose the function's best
point.

Assumption of the paper's regret bounds: finitely many priors, one of them true. Here a prior is a kernel,
Matern-3/2, Matern-5/2 or RBF, with length-scales, variance and noise from
:class:`~vbon.tuning.hyperprior.Hyperprior`: 64 draws of it for each kernel, and ten moves of a Markov chain
from the chosen one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vbon.tuning.gaussian_process import STATIONARY
from vbon.tuning.hyperprior import Hyperprior
from vbon.tuning.maximise import Sampled
from vbon.tuning.network import generator_of
from vbon.tuning.outcomes import Outcome
from vbon.tuning.thompson import ThompsonSampler, TrialContext


class HpGpTsSampler(ThompsonSampler):
    """Thompson sampling with a Gaussian process and a prior drawn for each trial and outcome.

    Args:
        candidates: draws of the hyperparameters for each kernel.
        moves: steps of the Markov chain that follow.
        options: those of :class:`~vbon.tuning.thompson.ThompsonSampler`.
    """

    def __init__(
        self, *, seed: int | None = None, candidates: int = 64, moves: int = 10, **options: Any
    ) -> None:
        super().__init__(seed=seed, **options)
        self.candidates, self.moves = candidates, moves

    def sampled(self, outcome: Outcome, context: TrialContext) -> Sampled:
        """A function of the posterior under a drawn prior."""
        x, y = torch.from_numpy(outcome.features), torch.from_numpy(outcome.values)
        rng = np.random.default_rng(context.seed_of(f"{outcome.name}/prior"))
        hyperprior = Hyperprior(context.space.groups)
        kernel, u = hyperprior.posterior_draw(
            STATIONARY, x, y, rng, candidates=self.candidates, moves=self.moves
        )
        generator = generator_of(context.seed_of(outcome.name))
        return hyperprior.process(kernel, u).fitted(x, y).drawn(generator)
