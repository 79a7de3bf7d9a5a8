"""Whether a series of samples grows, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

WARM_UP = 0.2  # of the time is left out: caches fill, the allocator finds its size
BATCHES = 10


@dataclass(frozen=True)
class Growth:
    """A straight line through a series.

    Attributes:
        mean: of the series.
        total: by how much the line rises from the end of the warm-up to the end; low, high: 95%.
        tolerated: the rise that would still be called flat.
    """

    mean: float
    total: float
    low: float
    high: float
    tolerated: float

    @property
    def verdict(self) -> Literal["flat", "grows", "undecided"]:
        """Flat or growing where the interval says so."""
        if self.high <= self.tolerated:
            return "flat"
        return "grows" if self.low > self.tolerated else "undecided"


def growth(
    at_s: Sequence[float], values: Sequence[float], *, share: float = 0.05, least: float = 1.0
) -> Growth | None:
    """Fit a line to means of ten equal parts of the time, which neighbours in time make alike no more.

    Args:
        share, least: flat is a rise of at most that share of the mean, or that much.

    Returns:
        Nothing where fewer than three parts have samples.
    """
    times, found = np.asarray(at_s, dtype=float), np.asarray(values, dtype=float)
    if len(times) == 0:
        return None
    start, end = times.min() + WARM_UP * np.ptp(times), times.max()
    kept = times >= start
    times, found = times[kept], found[kept]
    part = np.minimum(BATCHES - 1, (BATCHES * (times - start) / max(end - start, 1e-9)).astype(int))
    filled = [i for i in range(BATCHES) if (part == i).any()]
    if len(filled) < 3:
        return None
    x = np.array([times[part == i].mean() for i in filled])
    y = np.array([found[part == i].mean() for i in filled])
    line = stats.linregress(x, y)
    # A constant has no correlation with anything, and scipy then no error of the slope either.
    error = 0.0 if np.ptp(y) == 0 else float(line.stderr)
    half = float(stats.t.ppf(0.975, len(x) - 2)) * error
    rise, spread = float(line.slope) * (end - start), half * (end - start)
    mean = float(found.mean())
    return Growth(mean, rise, rise - spread, rise + spread, max(least, share * abs(mean)))
