"""Gaussian-process Thompson sampling with one prior: a Matern-5/2 kernel with its most probable settings.

It is the baseline of the samplers that choose their model in another way (hp-gp-ts, hyper-bo): the same
process, draws and search, and the usual fit.
"""

from __future__ import annotations

import numpy as np
import torch

from vbon.tuning.hyperprior import Hyperprior
from vbon.tuning.maximise import Sampled
from vbon.tuning.network import generator_of
from vbon.tuning.outcomes import Outcome
from vbon.tuning.thompson import ThompsonSampler, TrialContext


class GpTsSampler(ThompsonSampler):
    """Thompson sampling with a Gaussian process fitted to the trials."""

    def sampled(self, outcome: Outcome, context: TrialContext) -> Sampled:
        """A function of the posterior under the fitted prior."""
        return fitted_draw(outcome, context)


def fitted_draw(outcome: Outcome, context: TrialContext) -> Sampled:
    """A function drawn from the posterior of the Matern-5/2 process with fitted hyperparameters."""
    x, y = torch.from_numpy(outcome.features), torch.from_numpy(outcome.values)
    rng = np.random.default_rng(context.seed_of(f"{outcome.name}/prior"))
    hyperprior = Hyperprior(context.space.groups)
    u = hyperprior.mode("matern-5/2", x, y, rng)
    generator = generator_of(context.seed_of(outcome.name))
    return hyperprior.process("matern-5/2", u).fitted(x, y).drawn(generator)
