"""The distribution of length-scales, variance and noise, and draws and modes of it after data.

Outcomes are standardised and features lie in [0, 1]. The logarithms of the hyperparameters are independent
and normal, so a vector of standard normal numbers stands for a set of them. Columns of one parameter share a
length-scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from vbon.tuning.gaussian_process import Kernel, Process, log_evidence

Float = NDArray[np.float64]
LogLikelihood = Callable[[Float], float]

_STARTS = 32  # draws of the prior among which a search for the mode begins at the best


@dataclass(frozen=True, slots=True)
class Hyperprior:
    """The prior of hyperparameters.

    Attributes:
        groups: the group of each feature column; groups are numbered from 0.
        scale_at_one: the median length-scale of a space with one group; it grows with the root of the
            number of groups.
    """

    groups: NDArray[np.intp]
    scale_at_one: float = 0.5
    scale_sd: float = 1.0
    variance_sd: float = 0.7
    noise_median: float = 1e-3
    noise_sd: float = 2.0

    @property
    def size(self) -> int:
        """The number of hyperparameters."""
        return int(self.groups.max()) + 3

    def unpacked(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Length-scales (B, D), variances (B,) and noise variances (B,) of standard normal rows (B, size)."""
        count = self.size - 2
        middle = math.log(self.scale_at_one) + 0.5 * math.log(count)
        scales = torch.exp(middle + self.scale_sd * u[:, :count])[:, torch.from_numpy(self.groups)]
        variance = torch.exp(self.variance_sd * u[:, count])
        noise = torch.exp(math.log(self.noise_median) + self.noise_sd * u[:, count + 1])
        return scales, variance, noise

    def evidence(self, kernel: Kernel, u: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The log marginal likelihood of each row's hyperparameters, shape (B,)."""
        return log_evidence(kernel, *self.unpacked(u), x, y)

    def process(self, kernel: Kernel, u: Tensor) -> Process:
        """The process with the hyperparameters of one row (size,)."""
        scales, variance, noise = self.unpacked(u[None])
        return Process(kernel, scales[0], float(variance[0]), float(noise[0]))

    def mode(self, kernel: Kernel, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """The most probable hyperparameters after data, from the best of 32 draws of the prior by L-BFGS."""
        starts = torch.from_numpy(rng.standard_normal((_STARTS, self.size)))
        starts[0] = 0.0
        with torch.no_grad():
            begin = starts[int(self.evidence(kernel, starts, x, y).argmax())]

        def loss(flat: Float) -> tuple[float, Float]:
            u = torch.from_numpy(flat).requires_grad_()
            total = 0.5 * (u @ u) - self.evidence(kernel, u[None], x, y)[0]
            (slope,) = torch.autograd.grad(total, u)
            return float(total.detach()), slope.numpy()

        bounds = [(-5.0, 5.0)] * self.size
        start = begin.clamp(-5.0, 5.0).numpy()
        found = minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}
        )
        return torch.from_numpy(found.x)

    def posterior_draw(
        self, kernels: Sequence[Kernel], x: Tensor, y: Tensor, rng: np.random.Generator,
        *, candidates: int, moves: int,
    ) -> tuple[Kernel, Tensor]:  # fmt: skip
        """A kernel and hyperparameters drawn with probability proportional to prior times evidence.

        Each kernel has ``candidates`` draws of the prior, of which one is chosen by its evidence. ``moves``
        steps of elliptical slice sampling, which leave the posterior as it is, follow.
        """
        drawn = torch.from_numpy(rng.standard_normal((candidates, self.size)))
        with torch.no_grad():
            evidence = torch.stack([self.evidence(kernel, drawn, x, y) for kernel in kernels])
            place = pick(evidence.ravel().numpy(), rng)
            kernel, u = kernels[place // candidates], drawn[place % candidates]

            def of(row: Float) -> float:
                return float(self.evidence(kernel, torch.from_numpy(row)[None], x, y)[0])

            return kernel, torch.from_numpy(slice_moves(u.numpy(), of, rng, moves))


def pick(log_weights: Float, rng: np.random.Generator) -> int:
    """An index drawn with probability proportional to the exponential of its log weight."""
    weights = np.exp(log_weights - log_weights.max())
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def slice_moves(
    u: Float, log_likelihood: LogLikelihood, rng: np.random.Generator, moves: int
) -> Float:
    """The state after steps of elliptical slice sampling under a standard normal prior.

    Murray, Adams & MacKay 2010 (arXiv 1001.0175). It has nothing to tune and rejects no step.
    """
    value = log_likelihood(u)
    for _ in range(moves):
        ellipse = rng.standard_normal(len(u))
        level = value + np.log(rng.random())
        angle = rng.uniform(0, 2 * np.pi)
        low, high = angle - 2 * np.pi, angle
        while True:
            there = u * np.cos(angle) + ellipse * np.sin(angle)
            found = log_likelihood(there)
            if found > level:
                break
            low, high = (angle, high) if angle < 0 else (low, angle)
            angle = rng.uniform(low, high)
        u, value = there, found
    return u
