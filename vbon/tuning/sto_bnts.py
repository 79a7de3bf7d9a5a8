"""STO-BNTS: sample-then-optimise batch neural Thompson sampling.

Dai et al. 2022 (arXiv 2210.06850), algorithm 1. For each trial and outcome:

1. Draw theta0 and theta' from the initialisation, and set the last layer of theta' to 0.
2. f~(x; theta) = f(x; theta) + <grad f(x; theta0), theta'>; the second term stays fixed. At theta0 its
   covariance tends to the neural tangent kernel with growing width.
3. y~ = y + sigma eps.
4. Find a minimum, from theta0, of
   |y~ - f~(x; theta)|^2 / (2 sigma^2) + (theta - theta0)^T Lambda^-1 (theta - theta0) / 2.
5. Propose the largest f~(x; theta).

Assumption: the network is so wide that the minimum is near theta0. Departures from the published code: the
noise of step 3, without which the draws vary too little; new theta0 and theta' in each round; standardised
outcomes; a constant input; step 4 by L-BFGS in units of the initial standard deviations, at most 60 steps,
instead of 10,000 of gradient descent. (Gauss-Newton steps in closed form are faster at first, but stop at
kinks of the ReLU with up to five times the loss.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vbon.tuning.maximise import Sampled
from vbon.tuning.network import (
    Architecture,
    Parameters,
    forward,
    forward_and_tangent,
    generator_of,
    linearised,
    without_last_layer,
)
from vbon.tuning.outcomes import Outcome
from vbon.tuning.sto_bnts_linear import StoBntsLinearSampler
from vbon.tuning.thompson import TrialContext

TRAINING_STEPS = 60
_SETTLED = 1e-4  # the gradient's largest entry, in the paper's scaling, that ends the training


@dataclass(frozen=True)
class Problem:
    """The regularised least squares of one slot.

    Attributes:
        targets: y~ less the fixed term <grad f(x; theta0), theta'>.
    """

    start: Parameters
    x: Tensor
    targets: Tensor
    noise: float
    architecture: Architecture

    def loss_and_gradient(self, moved: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of step 4 and its gradient, by the move from theta0 in standard deviations."""
        at_data = linearised(self.parameters(moved), self.x)
        error = self.targets - at_data.values
        loss = (error @ error) / (2 * self.noise**2) + (moved @ moved) / 2
        pull = _flat(at_data.transposed(error / self.noise**2))
        return loss, moved - pull * self.deviations

    def parameters(self, moved: Tensor) -> Parameters:
        """The parameters after a move."""
        flat = torch.addcmul(self.begin, moved, self.deviations)
        shapes = [part.shape for layer in self.start for part in layer]
        parts = [
            part.view(shape)
            for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)
        ]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def solve(self, steps: int = TRAINING_STEPS) -> Parameters:
        """The parameters at a minimum near the start."""
        moved = torch.zeros_like(self.begin).requires_grad_()
        scale = self.noise**2 / len(self.targets)
        optimiser = torch.optim.LBFGS(
            [moved], max_iter=steps, max_eval=2 * steps, history_size=10,
            tolerance_grad=_SETTLED / scale, tolerance_change=0.0, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def measured() -> float:
            with torch.no_grad():
                loss, moved.grad = self.loss_and_gradient(moved.detach())
            return float(loss)

        step: Callable[[Callable[[], float]], Any] = optimiser.step
        step(measured)
        return self.parameters(moved.detach())

    @cached_property
    def begin(self) -> Tensor:
        """Theta0 as one vector."""
        return _flat(self.start)

    @cached_property
    def deviations(self) -> Tensor:
        """The initial standard deviation of each parameter."""
        variances = self.architecture.variances(self.start)
        parts = [
            part.new_full((part.numel(),), variance**0.5)
            for layer, both in zip(self.start, variances, strict=True)
            for part, variance in zip(layer, both, strict=True)
        ]
        return torch.cat(parts)


def _flat(parameters: Parameters) -> Tensor:
    return torch.cat([part.ravel() for layer in parameters for part in layer])


def problem_of(
    x: Tensor, y: Tensor, noise: float, architecture: Architecture, seed: int
) -> tuple[Problem, Parameters]:
    """The problem of one slot, and theta' of its fixed term."""
    generator = generator_of(seed)
    start = architecture.initial(x.shape[1], generator)
    extra = without_last_layer(architecture.initial(x.shape[1], generator))
    eps = torch.randn(len(y), generator=generator, dtype=y.dtype, device=y.device)
    _, fixed = forward_and_tangent(start, extra, x)
    return Problem(start, x, y + noise * eps - fixed, noise, architecture), extra


def network_draw(
    x: Tensor, y: Tensor, noise: float, architecture: Architecture, seed: int,
    steps: int = TRAINING_STEPS,
) -> Sampled:  # fmt: skip
    """A trained network with its fixed term: a function drawn approximately from the posterior."""
    problem, extra = problem_of(x, y, noise, architecture, seed)
    fitted = problem.solve(steps)

    def drawn(rows: Tensor) -> Tensor:
        _, fixed = forward_and_tangent(problem.start, extra, rows)
        return forward(fitted, rows) + fixed

    return drawn


class StoBntsSampler(StoBntsLinearSampler):
    """Thompson sampling with trained networks.

    Args:
        steps: the most steps of training of one network.
        options: those of :class:`~vbon.tuning.sto_bnts_linear.StoBntsLinearSampler`.
    """

    def __init__(
        self, *, seed: int | None = None, steps: int = TRAINING_STEPS, **options: Any
    ) -> None:
        super().__init__(seed=seed, **options)
        self.steps = steps

    def sampled(self, outcome: Outcome, context: TrialContext) -> Sampled:
        """A network trained for this trial and outcome."""
        x, y = torch.from_numpy(outcome.features), torch.from_numpy(outcome.values)
        seed = context.seed_of(outcome.name)
        return network_draw(x, y, self.noise, self.architecture, seed, self.steps)
