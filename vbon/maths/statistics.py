"""Confidence intervals of means, and tests of whether figures differ.

Samples of one prompt are correlated, so the prompt is the unit: statistics are computed per prompt, and
prompts are resampled. Callers leave out and count what could not be scored. Tests of several figures control
the probability of any false finding among all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vbon.maths.intervals import MeanInterval, MedianRange

RESAMPLES = 4000
_Z = 1.959964  # the normal distribution's 97.5% quantile
_EXACT_SPLITS = 20_000  # up to this many splits are enumerated, as for 8 rows against 8
_DRAWN_SPLITS = 10_000
_KEPT_COUNT = 256  # up to this many values, indices are kept: 8 MB
_ROWS_AT_ONCE = 256  # of 4,000 resampled means each: 8 MB
_ROUNDING = 1e-9  # sums in different order differ by less than this, relative to their size


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    kept = len(values) <= _KEPT_COUNT
    picks = _kept_picks(len(values), seed) if kept else _picks(len(values), seed)
    return values[picks].mean(axis=1)


def _picks(count: int, seed: int) -> NDArray[np.int64]:
    """The indices of bootstrap resamples, shape ``(RESAMPLES, count)``."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


_kept_picks = lru_cache(maxsize=4)(_picks)  # many figures have intervals over the same few prompts


def bootstrap_mean(values: ArrayLike, *, seed: int = 0) -> MeanInterval:
    """Mean of per-prompt values with its 95% percentile-bootstrap interval.

    With one value, the interval is that value.

    Raises:
        ValueError: ``values`` is empty, so nothing was measured.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values to average")
    low, high = np.quantile(_resampled_means(data, seed), [0.025, 0.975])
    return MeanInterval(float(data.mean()), float(low), float(high), int(data.size))


def bootstrap_means(rows: NDArray[np.float64], *, seed: int = 0) -> list[MeanInterval]:
    """The intervals of :func:`bootstrap_mean` for rows over the same prompts, shape ``(rows, prompts)``.

    One product with the resamples' weights takes a fraction of the time that row by row takes. NaN is a
    prompt that a row lacks; such a row is resampled on its own.

    Raises:
        ValueError: a row has no value.
    """
    count = rows.shape[1]
    lacking: NDArray[np.bool_] = np.asarray(np.isnan(rows).any(axis=1))
    whole = rows[~lacking]
    found: list[MeanInterval] = []
    if len(whole):
        picks = _kept_picks(count, seed) if count <= _KEPT_COUNT else _picks(count, seed)
        offsets = np.arange(RESAMPLES)[:, None] * count
        times = np.bincount((picks + offsets).ravel(), minlength=RESAMPLES * count)
        weights = times.reshape(RESAMPLES, count).T / count
        for start in range(0, len(whole), _ROWS_AT_ONCE):
            part = whole[start : start + _ROWS_AT_ONCE]
            lows, highs = np.quantile(part @ weights, [0.025, 0.975], axis=1)
            found += [
                MeanInterval(float(mean), float(low), float(high), count)
                for mean, low, high in zip(part.mean(axis=1), lows, highs, strict=True)
            ]
    by_place = iter(found)
    return [
        bootstrap_mean(row[~np.isnan(row)], seed=seed) if alone else next(by_place)
        for row, alone in zip(rows, lacking, strict=True)
    ]


def wilson_interval(values: ArrayLike) -> MeanInterval:
    """Mean of independent verdicts, each in [0, 1], with Wilson's 95% score interval.

    Unlike a bootstrap interval, it has a width even if all verdicts agree. A tie counts 1/2 and varies less
    than the formula assumes, so with ties the interval is slightly too wide.

    Raises:
        ValueError: ``values`` is empty.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values to average")
    share, count = float(data.mean()), int(data.size)
    centre = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    low, high = ((centre + sign * half) / (1 + _Z**2 / count) for sign in (-1, 1))
    return MeanInterval(share, max(0.0, low), min(1.0, high), count)


def median_range(values: ArrayLike) -> MedianRange:
    """Median, smallest and largest of the values.

    Raises:
        ValueError: ``values`` is empty.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values to summarise")
    return MedianRange(float(np.median(data)), float(data.min()), float(data.max()), int(data.size))


def joint_permutation(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P-values of many figures that may differ between two samples, each alone and adjusted for all.

    This is the step-down max-T test of Westfall & Young (1993), Resampling-Based Multiple Testing, algorithm
    4.1. Whole rows are permuted between the samples, so the figures of a row keep their dependence. Each
    figure is compared with the largest difference among itself and all figures that differ less. The
    probability of any false finding is then at most the level, whichever figures really differ. All splits
    are enumerated if there are at most 20,000; otherwise 10,000 are sampled.

    Args:
        first: one row per round, one column per figure; NaN if a round does not have the figure. Every figure
            needs at least one value here and in ``second``.
        second: the other sample, with the same figures.

    Returns:
        The two-sided p-values by figure, and the adjusted ones.
    """
    rows = np.vstack([first, second])
    known = (~np.isnan(rows)).astype(np.float64)
    centred = np.where(np.isnan(rows), 0.0, rows - np.nanmean(rows, axis=0))
    squares = (centred**2).sum(axis=0)
    # A constant figure has only the rounding error of its mean, which must not be scaled up to a finding.
    level = np.maximum(1.0, np.nanmax(np.abs(rows), axis=0))
    squares = np.where(np.sqrt(squares) > _ROUNDING * level, squares, np.inf)
    counts = known.sum(axis=0)

    def standardised(side: NDArray[np.float64]) -> NDArray[np.float64]:
        """|Difference of means| over its standard deviation among all splits, by split and figure.

        It is a monotonic function of the pooled t statistic, and works for a side with a single row.
        """
        here = side @ known
        weight = here * (counts - here) / counts
        # A split that leaves one side without a value of the figure counts as no difference.
        inverse = np.divide(1.0, weight, out=np.zeros_like(weight), where=weight > 0)
        return np.sqrt((side @ centred) ** 2 * inverse * (counts - 1) / squares)

    sides, exact = _sides(len(first), len(rows))
    drawn = standardised(sides)
    seen = standardised((np.arange(len(rows)) < len(first)).astype(np.float64)[None])[0]
    order = np.argsort(-seen, kind="stable")
    largest = np.maximum.accumulate(drawn[:, order[::-1]], axis=1)[:, ::-1]
    adjusted = np.empty_like(seen)
    # A figure's adjusted p-value is at least that of every figure that differs more.
    adjusted[order] = np.maximum.accumulate(_share_at_least(largest, seen[order], exact))
    return _share_at_least(drawn, seen, exact), adjusted


def _sides(size: int, total: int) -> tuple[NDArray[np.float64], bool]:
    """Splits of ``total`` rows, with 1 for the ``size`` rows of the first side; True if they are all."""
    exact = math.comb(total, size) <= _EXACT_SPLITS
    if exact:
        picks = np.array(list(combinations(range(total), size)))
    else:
        rng = np.random.default_rng(0)
        picks = rng.permuted(np.tile(np.arange(total), (_DRAWN_SPLITS, 1)), axis=1)[:, :size]
    sides = np.zeros((len(picks), total))
    np.put_along_axis(sides, picks, 1.0, axis=1)
    return sides, exact


def _share_at_least(
    drawn: NDArray[np.float64], seen: NDArray[np.float64], exact: bool
) -> NDArray[np.float64]:
    at_least = (drawn >= seen * (1 - _ROUNDING)).sum(axis=0)
    # The observed split is one of all splits, but a random sample may lack it.
    return at_least / len(drawn) if exact else (at_least + 1) / (len(drawn) + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the probability of any false finding under any dependence.

    Holm (1979), A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
    Statistics 6.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(one) for one in adjusted]


def welch_interval(first: ArrayLike, second: ArrayLike) -> tuple[float, float] | None:
    """95% t interval of the mean of ``second`` minus that of ``first``, without assuming equal variances.

    Welch (1947), The Generalization of "Student's" Problem, Biometrika 34. ``None`` if a side has only one
    value, so that its variance is unknown. ``scipy.stats.ttest_ind`` gives the same interval within 1e-15,
    but warns if a side is constant, and takes four times as long to import.
    """
    from scipy.special import stdtrit  # slow to import, and the service starts without it

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if min(a.size, b.size) < 2:
        return None
    parts = [float(side.var(ddof=1)) / side.size for side in (a, b)]
    difference, squared = float(b.mean() - a.mean()), sum(parts)
    if squared == 0:
        return difference, difference
    spent = sum(p**2 / (side.size - 1) for p, side in zip(parts, (a, b), strict=True))
    half = float(stdtrit(squared**2 / spent, 0.975)) * math.sqrt(squared)
    return difference - half, difference + half
