"""STO-BNTS-Linear: Thompson sampling from the Gaussian process of a finite network's tangent kernel.

Dai et al. 2022, Sample-Then-Optimize Batch Neural Thompson Sampling (arXiv 2210.06850). With theta' and
theta0 drawn from the initialisation, the model <grad f(x; theta'), theta> starts at theta0 and is fitted to
y~ = y + sigma eps, regularised towards theta0. Its minimum is known, so it is computed and not trained:

    theta = theta0 + Lambda J^T (K + sigma^2 I)^-1 (y~ - J theta0),   K = J Lambda J^T

which is Matheron's rule: an exact draw of the posterior of the process with kernel K and noise sigma^2.

Departures: the noise eps, without which the draws vary too little; weights by the initial variances Lambda;
standardised outcomes; a constant input; new theta0, theta' and eps for each trial and outcome.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vbon.errors import InvalidInputError
from vbon.tuning.maximise import Sampled
from vbon.tuning.network import (
    PAPERS,
    Architecture,
    Parameters,
    combined,
    forward_and_tangent,
    generator_of,
    linearised,
    scaled,
)
from vbon.tuning.outcomes import Outcome
from vbon.tuning.thompson import ThompsonSampler, TrialContext


def closed_form(
    features: Parameters, start: Parameters, x: Tensor, targets: Tensor,
    noise: float, architecture: Architecture,
) -> Parameters:  # fmt: skip
    """The parameters theta of the fitted linear model <grad f(x; features), theta>.

    Args:
        start: theta0.
        targets: y~, the outcomes with noise of standard deviation ``noise`` added.
    """
    variances = architecture.variances(features)
    at_data = linearised(features, x)
    _, begin = forward_and_tangent(features, start, x)
    gram = at_data.kernel(at_data, variances) + noise**2 * torch.eye(
        len(x), dtype=x.dtype, device=x.device
    )
    weights = torch.linalg.solve(gram, targets - begin)
    return combined(start, scaled(at_data.transposed(weights), variances))


def linear_draw(
    x: Tensor, y: Tensor, noise: float, architecture: Architecture, seed: int,
    features: Parameters | None = None,
) -> Sampled:  # fmt: skip
    """A function drawn from the posterior.

    Args:
        features: theta', which fixes the kernel; drawn from the seed if it is not given.
    """
    generator = generator_of(seed)
    drawn = architecture.initial(x.shape[1], generator)
    features = drawn if features is None else features
    start = architecture.initial(x.shape[1], generator)
    eps = torch.randn(len(y), generator=generator, dtype=y.dtype, device=y.device)
    fitted = closed_form(features, start, x, y + noise * eps, noise, architecture)
    return lambda rows: forward_and_tangent(features, fitted, rows)[1]


class StoBntsLinearSampler(ThompsonSampler):
    """Thompson sampling with a linearised network, exact for its kernel.

    Args:
        noise: sigma, in standard deviations of the outcome.
        architecture: the network.
        options: those of :class:`~vbon.tuning.thompson.ThompsonSampler`.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        noise: float = 0.1,
        architecture: Architecture = PAPERS,
        **options: Any,
    ) -> None:
        super().__init__(seed=seed, **options)
        if noise <= 0:
            raise InvalidInputError(f"noise is {noise}; it must be above 0", field="noise")
        self.noise, self.architecture = noise, architecture

    def sampled(self, outcome: Outcome, context: TrialContext) -> Sampled:
        """The function of one fitted draw of the network's parameters."""
        x, y = torch.from_numpy(outcome.features), torch.from_numpy(outcome.values)
        seed = context.seed_of(outcome.name)
        return linear_draw(x, y, self.noise, self.architecture, seed)
