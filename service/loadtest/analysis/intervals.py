"""Figures of samples, and whether two of them differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from service.loadtest.schema import Quantiles
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import RESAMPLES, bootstrap_mean

Float = NDArray[np.float64]

_EXACT = 20_000  # most arrangements that are enumerated; beyond, as many are drawn


def quantiles(values: Iterable[float | None]) -> Quantiles | None:
    """Of what there is; ``None`` of nothing. Linear interpolation, as numpy and vLLM's bench do it."""
    data = np.array([value for value in values if value is not None], dtype=np.float64)
    if data.size == 0:
        return None
    p50, p90, p95, p99 = (round(float(q), 3) for q in np.quantile(data, [0.5, 0.9, 0.95, 0.99]))
    return Quantiles(
        mean=round(float(data.mean()), 3), p50=p50, p90=p90, p95=p95, p99=p99, count=int(data.size)
    )


def interval(values: Sequence[float]) -> MeanInterval | None:
    """Mean of values by prompt with its 95% bootstrap interval; ``None`` of nothing."""
    if not len(values):
        return None
    return bootstrap_mean(values)


def resamples(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Bootstrap indices, shape ``(RESAMPLES, count)``: one set for everything that is paired."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value that paired differences have mean 0, by flipping their signs."""
    data = np.asarray(differences, dtype=np.float64)
    exact = 2 ** len(data) <= _EXACT
    if exact:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(data))))
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(_EXACT, len(data)))
    return _share(np.abs((signs * data).mean(axis=1)), abs(float(data.mean())), exact)


def _share(drawn: Float, seen: float, exact: bool) -> float:
    # What was seen is itself one of the arrangements, which a drawn sample may lack.
    at_least = int((drawn >= seen - 1e-12 * max(1.0, seen)).sum())
    return at_least / len(drawn) if exact else (at_least + 1) / (len(drawn) + 1)
