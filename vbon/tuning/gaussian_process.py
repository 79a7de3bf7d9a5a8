"""Gaussian processes: kernels, evidence, and functions drawn from the posterior by Matheron's rule.

Legend: n data, D feature columns, B sets of hyperparameters at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vbon.tuning.maximise import Sampled
from vbon.tuning.network import (
    Architecture,
    forward_and_tangent,
    without_last_layer,
)
from vbon.tuning.ntk import ntk

Kernel = Literal["matern-3/2", "matern-5/2", "rbf", "ntk"]
STATIONARY: tuple[Kernel, ...] = ("matern-3/2", "matern-5/2", "rbf")
_FREEDOM = {
    "matern-3/2": 3,
    "matern-5/2": 5,
}  # of the t distribution of a Matern kernel's frequencies
_FREQUENCIES = 512
_NETWORK = Architecture(width=512)
_JITTER = 1e-8


@dataclass(frozen=True, slots=True)
class Trend:
    """A mean that is linear in one feature column and has the sign ``sign`` there."""

    column: int
    sign: int


@dataclass(frozen=True, slots=True)
class Process:
    """A Gaussian process prior with its noise.

    Attributes:
        scales: the length-scale of each feature column, shape (D,).
        variance: the variance of the function.
        noise: the variance of the noise.
        trend: None for a constant mean.
    """

    kernel: Kernel
    scales: Tensor
    variance: float
    noise: float
    trend: Trend | None = None

    def covariance(self, x: Tensor, other: Tensor) -> Tensor:
        """The prior covariance of the function, shape (n, n')."""
        return self.variance * correlation(self.kernel, x / self.scales, other / self.scales)

    def fitted(self, x: Tensor, y: Tensor) -> Posterior:
        """The posterior after data."""
        gram = self.covariance(x, x)
        gram = gram + (self.noise + _JITTER) * torch.eye(len(x), dtype=x.dtype, device=x.device)
        factor = torch.linalg.cholesky(gram)
        mean = self._mean(x, y, factor)
        weights = torch.cholesky_solve((y - _line(mean, x, self.trend))[:, None], factor)[:, 0]
        return Posterior(self, x, y, factor, mean, weights)

    def drawn(self, inputs: int, generator: torch.Generator) -> Sampled:
        """A function drawn from the prior without its mean, for rows of ``inputs`` columns."""
        if self.kernel == "ntk":
            return self._drawn_network(inputs, generator)
        z = torch.randn(inputs, _FREQUENCIES, generator=generator, dtype=torch.float64)
        freedom = _FREEDOM.get(self.kernel)
        if freedom is not None:
            chi = torch.randn(freedom, _FREQUENCIES, generator=generator, dtype=torch.float64)
            z = z / ((chi**2).sum(dim=0) / freedom).sqrt()
        frequencies = z / self.scales[:, None]
        scale = math.sqrt(self.variance / _FREQUENCIES)
        weights = torch.randn(2, _FREQUENCIES, generator=generator, dtype=torch.float64) * scale

        def function(rows: Tensor) -> Tensor:
            phase = rows @ frequencies
            return torch.cos(phase) @ weights[0] + torch.sin(phase) @ weights[1]

        return function

    def _drawn_network(self, inputs: int, generator: torch.Generator) -> Sampled:
        start = _NETWORK.initial(inputs, generator)
        extra = without_last_layer(_NETWORK.initial(inputs, generator))
        scale = math.sqrt(self.variance / _ntk_size(inputs))

        def function(rows: Tensor) -> Tensor:
            value, tangent = forward_and_tangent(start, extra, rows / self.scales)
            return (value + tangent) * scale

        return function

    def _mean(self, x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
        """Intercept and slope by generalised least squares; a slope of the wrong sign becomes 0."""
        columns = [x.new_ones(len(x))]
        if self.trend is not None:
            columns.append(x[:, self.trend.column])
        design = torch.stack(columns, dim=1)
        white = torch.linalg.solve_triangular(factor, design, upper=False)
        target = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
        # The small ridge decides where a column is constant.
        normal = white.T @ white + 1e-6 * torch.eye(len(columns), dtype=x.dtype, device=x.device)
        found = torch.linalg.solve(normal, white.T @ target)[:, 0]
        if self.trend is not None and float(found[1]) * self.trend.sign <= 0:
            alone = (white[:, :1].T @ target) / (normal[0, 0])
            found = torch.stack([alone[0, 0], x.new_zeros(())])
        return found


@dataclass(frozen=True, slots=True)
class Posterior:
    """A Gaussian process after data."""

    process: Process
    x: Tensor
    y: Tensor
    factor: Tensor
    mean: Tensor
    weights: Tensor

    def moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and variance of the function at rows."""
        cross = self.process.covariance(rows, self.x)
        mean = _line(self.mean, rows, self.process.trend) + cross @ self.weights
        white = torch.linalg.solve_triangular(self.factor, cross.T, upper=False)
        own = self.process.variance * _self_correlation(self.process, rows)
        return mean, (own - (white**2).sum(dim=0)).clamp_min(1e-12)

    def log_evidence(self) -> float:
        """The log density of the data under the prior, with the mean as it was fitted."""
        gap = self.y - _line(self.mean, self.x, self.process.trend)
        log_det = float(self.factor.diagonal().log().sum())
        return -0.5 * float(gap @ self.weights) - log_det - 0.5 * len(gap) * math.log(2 * math.pi)

    def log_density(self, rows: Tensor, values: Tensor) -> float:
        """The mean log predictive density of values with noise at rows."""
        mean, variance = self.moments(rows)
        spread = torch.distributions.Normal(mean, (variance + self.process.noise).sqrt())
        return float(spread.log_prob(values).mean())

    def drawn(self, generator: torch.Generator) -> Sampled:
        """A function drawn from the posterior: a prior draw, corrected at the data (Matheron's rule)."""
        prior = self.process.drawn(self.x.shape[1], generator)
        eps = torch.randn(len(self.y), generator=generator, dtype=torch.float64)
        line = _line(self.mean, self.x, self.process.trend)
        gap = self.y - line - prior(self.x) - eps * math.sqrt(self.process.noise)
        weights = torch.cholesky_solve(gap[:, None], self.factor)[:, 0]

        def function(rows: Tensor) -> Tensor:
            correction = self.process.covariance(rows, self.x) @ weights
            return _line(self.mean, rows, self.process.trend) + prior(rows) + correction

        return function


def correlation(kernel: Kernel, x: Tensor, other: Tensor) -> Tensor:
    """The kernel between scaled rows, (..., n, D) and (..., n', D); 1 on the diagonal if stationary."""
    if kernel == "ntk":
        return ntk(x, other, _NETWORK) / _ntk_size(x.shape[-1])
    squared = (
        (x**2).sum(dim=-1)[..., :, None] + (other**2).sum(dim=-1)[..., None, :]
        - 2 * x @ other.transpose(-1, -2)
    ).clamp_min(1e-20)  # fmt: skip
    if kernel == "rbf":
        return torch.exp(-squared / 2)
    distance = squared.sqrt()
    if kernel == "matern-3/2":
        return (1 + math.sqrt(3) * distance) * torch.exp(-math.sqrt(3) * distance)
    root = math.sqrt(5) * distance
    return (1 + root + 5 / 3 * squared) * torch.exp(-root)


def log_evidence(
    kernel: Kernel, scales: Tensor, variance: Tensor, noise: Tensor, x: Tensor, y: Tensor
) -> Tensor:
    """The log marginal likelihood of y with mean 0 under B stationary priors, shape (B,).

    Args:
        scales: shape (B, D).
        variance, noise: shape (B,).
    """
    scaled = x[None] / scales[:, None]
    gram = variance[:, None, None] * correlation(kernel, scaled, scaled)
    unit = torch.eye(len(x), dtype=x.dtype, device=x.device)
    factor = torch.linalg.cholesky(gram + (noise + _JITTER)[:, None, None] * unit)
    target = y.expand(len(scales), -1)[..., None]
    white = torch.linalg.solve_triangular(factor, target, upper=False)[..., 0]
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return -0.5 * (white**2).sum(dim=-1) - log_det - 0.5 * len(x) * math.log(2 * math.pi)


def _self_correlation(process: Process, rows: Tensor) -> Tensor:
    if process.kernel != "ntk":
        return rows.new_ones(len(rows))
    return correlation("ntk", rows / process.scales, rows / process.scales).diagonal()


def _ntk_size(inputs: int) -> float:
    """The kernel's size at a row of ones, by which it is divided."""
    row = torch.ones(1, inputs, dtype=torch.float64, device="cpu")
    return float(ntk(row, row, _NETWORK)[0, 0])


def _line(mean: Tensor, rows: Tensor, trend: Trend | None) -> Tensor:
    line = mean[0].expand(len(rows))
    return line if trend is None else line + mean[1] * rows[:, trend.column]
