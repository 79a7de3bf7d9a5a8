"""Means with 95% confidence intervals, resampled over prompts.

Samples of one prompt are correlated, so prompts are the unit: statistics are taken per prompt and
the prompts are bootstrapped. What could not be scored is left out and counted by the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 4000
_Z = 1.959964  # the normal distribution's 97.5% quantile


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% percentile-bootstrap interval; ``count`` is the number of prompts."""

    mean: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float | int]:
        """Plain values for JSON."""
        return {
            "mean": self.mean,
            "ci95_low": self.low,
            "ci95_high": self.high,
            "count": self.count,
        }

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(values), size=(RESAMPLES, len(values)))
    return values[picks].mean(axis=1)


def bootstrap_mean(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean of per-prompt values with a 95% interval; with one value the interval is that value.

    Raises:
        ValueError: on no values: nothing was measured, and nothing is what should be reported.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values to average")
    low, high = np.quantile(_resampled_means(data, seed), [0.025, 0.975])
    return Estimate(float(data.mean()), float(low), float(high), int(data.size))


def score_share(values: ArrayLike) -> Estimate:
    """Mean of independent verdicts, each in [0, 1], with Wilson's 95% score interval.

    Unlike a bootstrap it has a width where all verdicts agree. A tie is half a win, which varies less
    than the interval allows for: with ties it is a little too wide.

    Raises:
        ValueError: on no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values to average")
    share, count = float(data.mean()), int(data.size)
    centre = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    low, high = ((centre + sign * half) / (1 + _Z**2 / count) for sign in (-1, 1))
    return Estimate(share, max(0.0, low), min(1.0, high), count)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median with the smallest and largest of a few repeats: for ratios of timings."""

    median: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float | int]:
        """Plain values for JSON."""
        return {"median": self.median, "min": self.low, "max": self.high, "count": self.count}


def spread(values: ArrayLike) -> Spread:
    """Median, minimum and maximum of at least one value."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values to summarise")
    return Spread(float(np.median(data)), float(data.min()), float(data.max()), int(data.size))
