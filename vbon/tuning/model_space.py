"""The models among which hyper-bo searches, and the Gaussian process over their scores.

A model is a kernel, a factor on the reference's length-scales, and a monotone direction of one parameter or
none: three dimensions, so that a dozen scores say something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vbon.tuning.gaussian_process import Kernel, Process, log_evidence

Float = NDArray[np.float64]

KERNELS: tuple[Kernel, ...] = ("matern-3/2", "matern-5/2", "rbf", "ntk")
LARGEST_FACTOR = 2.0
FACTORS = tuple(LARGEST_FACTOR ** (k / 3) for k in range(-3, 4))
SPACE_FILLING = 4  # models before scores are used; as many as there are kernels

# Hyperparameters of the process over scores, among which the evidence chooses.
_SCALES = (0.5, 1.0, 2.0)
_NOISES = (0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True, slots=True)
class Model:
    """One model.

    Attributes:
        factor: on the length-scales of the reference process.
        trend: the parameter along which the mean rises (+1) or falls (-1), or None.
    """

    kernel: Kernel
    factor: float
    trend: tuple[str, int] | None = None

    @staticmethod
    def of(record: dict[str, Any]) -> Model:
        """The model of a trial's record."""
        trend = record["trend"]
        return Model(record["kernel"], record["factor"], None if trend is None else tuple(trend))


def trends_of(parameters: Sequence[str]) -> list[tuple[str, int] | None]:
    """All directions: none, up and down along each parameter."""
    return [None, *((name, sign) for name in parameters for sign in (1, -1))]


def all_models(parameters: Sequence[str]) -> list[Model]:
    """The grid of models for these parameters that are numbers."""
    return [
        Model(kernel, factor, trend)
        for kernel in KERNELS
        for factor in FACTORS
        for trend in trends_of(parameters)
    ]


def first_models(parameters: Sequence[str], rng: np.random.Generator) -> list[Model]:
    """Models that fill the space: the plain Matern-5/2, then other kernels, factors and directions."""
    others: list[Kernel] = ["matern-3/2", "rbf", "ntk"]
    trends = trends_of(parameters)
    strata = (rng.permutation(len(others)) + rng.random(len(others))) / len(others)
    places = rng.permutation(len(trends))
    found = [Model("matern-5/2", 1.0)]
    for k, place in enumerate(rng.permutation(len(others))):
        factor = float(LARGEST_FACTOR ** (2 * strata[k] - 1))
        found.append(Model(others[place], factor, trends[places[k % len(trends)]]))
    return found


def model_features(models: Sequence[Model], parameters: Sequence[str]) -> Float:
    """Feature rows of models: indicators divided by sqrt 2, and the factor's logarithm in [0, 1]."""
    trends = trends_of(parameters)
    rows = np.zeros((len(models), len(KERNELS) + 1 + len(trends)))
    for row, model in zip(rows, models, strict=True):
        row[KERNELS.index(model.kernel)] = 1 / math.sqrt(2)
        row[len(KERNELS)] = (math.log(model.factor, LARGEST_FACTOR) + 1) / 2
        # A direction along a parameter that the space no longer has counts as none.
        place = trends.index(model.trend) if model.trend in trends else 0
        row[len(KERNELS) + 1 + place] = 1 / math.sqrt(2)
    return rows


def sampled_scores(
    tried: Float, scores: Float, rows: Float, rng: np.random.Generator, draws: int
) -> Float:
    """Scores of models drawn from the posterior of the process over them, shape (draws, rows)."""
    mean, spread = float(scores.mean()), max(float(scores.std()), 0.1)
    x, z = torch.from_numpy(tried), torch.from_numpy((scores - mean) / spread)
    settings = [(scale, noise) for scale in _SCALES for noise in _NOISES]
    scales = torch.tensor([[scale] * x.shape[1] for scale, _ in settings], dtype=torch.float64)
    noises = torch.tensor([noise for _, noise in settings], dtype=torch.float64)
    evidence = log_evidence("rbf", scales, torch.ones_like(noises), noises, x, z)
    best = int(evidence.argmax())
    process = Process("rbf", scales[best], 1.0, float(noises[best]))
    posterior = process.fitted(x, z)
    at = torch.from_numpy(rows)
    centre, _ = posterior.moments(at)
    white = torch.linalg.solve_triangular(posterior.factor, process.covariance(x, at), upper=False)
    covariance = (process.covariance(at, at) - white.T @ white).numpy()
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    return mean + spread * (centre.numpy() + rng.standard_normal((draws, len(root))) @ root.T)
