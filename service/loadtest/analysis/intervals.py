"""Percentiles, bootstrap intervals and a sign-flip test of samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product
from math import comb

import numpy as np
from numpy.typing import NDArray

from service.loadtest.schema import Quantiles
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import bootstrap_mean

Float = NDArray[np.float64]

_EXACT = 20_000  # up to this many arrangements are enumerated; of more, this many are sampled


def quantiles(values: Iterable[float | None]) -> Quantiles | None:
    """Mean and percentiles of the values that are not ``None``; ``None`` if there are none.

    Percentiles are interpolated linearly, as numpy and ``vllm bench serve`` do.
    """
    data = np.array([value for value in values if value is not None], dtype=np.float64)
    if data.size == 0:
        return None
    p50, p90, p95, p99 = (round(float(q), 3) for q in np.quantile(data, [0.5, 0.9, 0.95, 0.99]))
    return Quantiles(
        mean=round(float(data.mean()), 3), p50=p50, p90=p90, p95=p95, p99=p99, count=int(data.size)
    )


def interval(values: Sequence[float]) -> MeanInterval | None:
    """Mean of per-prompt values with its 95% bootstrap interval; ``None`` if nothing was measured."""
    if not len(values):
        return None
    return bootstrap_mean(values)


def percentile_interval(values: Sequence[float], share: float) -> MeanInterval | None:
    """A percentile with its 95% interval between two order statistics; ``None`` without values.

    The number of values below the true percentile is binomial, so its normal approximation gives their ranks.
    The percentile stands in the field ``mean``. No end lies beyond the values, so an interval of few is
    too narrow: that of p95 holds it in 32% of samples of 10, in 89% of 50 and in 95% from about 90 on.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    if data.size == 0:
        return None
    half = 1.96 * np.sqrt(data.size * share * (1 - share))
    ranks = (int(np.floor(data.size * share - half)), int(np.ceil(data.size * share + half)))
    low, high = (float(data[min(max(rank, 0), data.size - 1)]) for rank in ranks)
    found = float(np.quantile(data, share))
    return MeanInterval(found, min(low, found), max(high, found), int(data.size))


def resampled_means(rows: Float, resamples: int) -> Float:
    """Column means of bootstrap resamples of whole rows, so that paired columns stay paired.

    Args:
        rows: shape ``(count, columns)``.

    Returns:
        shape ``(resamples, columns)``.
    """
    return _resample_counts(len(rows), resamples) @ rows / len(rows)


@lru_cache(maxsize=8)
def _resample_counts(count: int, resamples: int) -> Float:
    """The number of times that each of ``count`` rows is drawn, in each of so many resamples."""
    picks = np.random.default_rng(0).integers(count, size=(resamples, count))
    offsets = np.arange(resamples)[:, None] * count
    counts = np.bincount((picks + offsets).ravel(), minlength=resamples * count)
    return counts.reshape(resamples, count).astype(np.float64)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value for paired differences having mean 0, by flipping their signs."""
    data = np.asarray(differences, dtype=np.float64)
    exact = 2 ** len(data) <= _EXACT
    if exact:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(data))))
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(_EXACT, len(data)))
    return _share(np.abs((signs * data).mean(axis=1)), abs(float(data.mean())), exact)


def least_permutation_p(rounds: int) -> float:
    """The smallest p-value of a permutation test with this many rounds per run: two of all splits."""
    return 2 / comb(2 * rounds, rounds)


def _share(drawn: Float, seen: float, exact: bool) -> float:
    # The observed arrangement is one of all arrangements, but a random sample may lack it.
    at_least = int((drawn >= seen - 1e-12 * max(1.0, seen)).sum())
    return at_least / len(drawn) if exact else (at_least + 1) / (len(drawn) + 1)
