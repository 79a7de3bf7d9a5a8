"""Compares the points of a sweep: Pareto shares, and win rates beside best-of-n at the same KL.

All functions are pure. A *place* is ``(KL in nats, value)``; lower KL and higher value are better. Means
over seeds are given with the smallest and largest seed, not with an interval, since seeds are few.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vbon.maths.intervals import MedianRange
from vbon.maths.pareto import Place, dominates
from vbon.maths.statistics import median_range

_ROUNDING = 1e-12  # a place on the line between two points of the curve is not dominated by it


@dataclass(frozen=True, slots=True)
class Point:
    """One tuned policy as a point of the plane (KL, value).

    Attributes:
        kl: KL from the reference policy, in nats.
        value: win rate or reward, by the reward model or the gold reward model; higher is better.
    """

    method: str
    seed: int
    kl: float
    value: float

    @property
    def place(self) -> Place:
        """The pair ``(KL, value)``."""
        return self.kl, self.value


@dataclass(frozen=True, slots=True)
class BonCurvePoint:
    """Best-of-n at the upper bound of its KL, in nats; n = 1 is the reference policy at KL 0."""

    n: int
    kl: float
    value: float


@dataclass(frozen=True, slots=True)
class SeedMean:
    """A mean over ``seeds`` seeds, with the values of the smallest and largest seed."""

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, slots=True)
class FrontierShare:
    """The share of a method's points that are on the frontier; all shares are in [0, 1].

    Attributes:
        points: number of points of the method, over all seeds.
        on_frontier: number of these that no tuned point of the same seed dominates.
        share: their share, computed within each seed.
        share_with_curve: the share when the best-of-n curve competes as well.
        of_frontier: the method's share of all frontier points, computed within each seed.
    """

    method: str
    points: int
    on_frontier: int
    share: SeedMean
    share_with_curve: SeedMean
    of_frontier: SeedMean


@dataclass(frozen=True, slots=True)
class PointEfficiency:
    """A point's win rate divided by that of best-of-n at the same KL.

    Attributes:
        curve_value: the win rate of best-of-n at that KL.
        beyond: true if the KL exceeds that of the last measured n, so ``curve_value`` is extrapolated.
    """

    point: Point
    curve_value: float
    ratio: float
    beyond: bool


@dataclass(frozen=True, slots=True)
class MethodEfficiency:
    """The median and range of a method's efficiencies; ``beyond`` counts the extrapolated ones."""

    method: str
    ratio: MedianRange
    beyond: int


def over_seeds(values: Mapping[int, Sequence[float]]) -> SeedMean:
    """The mean, smallest and largest of the means of the seeds.

    Raises:
        ValueError: all seeds are empty.
    """
    means = [float(np.mean(values[seed])) for seed in sorted(values) if len(values[seed])]
    if not means:
        raise ValueError("no seed has a value")
    return SeedMean(float(np.mean(means)), min(means), max(means), len(means))


def frontier_flags(points: Sequence[Point], curve: Sequence[BonCurvePoint] = ()) -> list[bool]:
    """One flag per point: true if no point of the same seed, nor best-of-n, dominates it."""
    rivals: dict[int, list[Place]] = defaultdict(list)
    for point in points:
        rivals[point.seed].append(point.place)
    return [
        not any(dominates(r, p.place) for r in rivals[p.seed])
        and not curve_dominates(curve, p.place)
        for p in points
    ]


def curve_dominates(curve: Sequence[BonCurvePoint], place: Place) -> bool:
    """Tell whether best-of-n dominates a place; between two measured n a coin chooses one of them.

    The coin's win rate or reward is the mean of both, and its KL is at most the mean of both, since KL is
    convex. So every place on the line between two points of the curve can be reached.
    """
    if any(dominates((c.kl, c.value), place) for c in curve):
        return True
    ordered = sorted(curve, key=lambda c: c.kl)
    if not ordered or place[0] < ordered[0].kl:
        return False
    reached = np.interp(place[0], [c.kl for c in ordered], [c.value for c in ordered])
    return bool(reached > place[1] + _ROUNDING)


def frontier_shares(points: Sequence[Point], curve: Sequence[BonCurvePoint]) -> list[FrontierShare]:
    """The frontier shares of the methods, the highest share first.

    Only points of the same seed compete, so that no method gains by running more seeds. The curve has
    no seed and competes in each of them.
    """
    alone = list(zip(points, frontier_flags(points), strict=True))
    beside = list(zip(points, frontier_flags(points, curve), strict=True))
    size: dict[int, int] = defaultdict(int)
    for point, flag in alone:
        size[point.seed] += flag
    rows = []
    for method in _methods(points):
        own = _by_seed((p.seed, float(flag)) for p, flag in alone if p.method == method)
        left = _by_seed((p.seed, float(flag)) for p, flag in beside if p.method == method)
        part = {seed: [sum(group) / size[seed]] for seed, group in own.items()}
        flags = [flag for group in own.values() for flag in group]
        shares = over_seeds(own), over_seeds(left), over_seeds(part)
        rows.append(FrontierShare(method, len(flags), int(sum(flags)), *shares))
    return sorted(rows, key=lambda row: (-row.share.mean, -row.on_frontier, row.method))


def tie_free_win_rate(kl: float) -> float:
    """The win rate ``n / (n + 1)`` at the real n >= 1 whose bound ``log n - (n-1)/n`` is ``kl`` nats.

    This is the win rate of best-of-n without ties. Negative KL, noise of an estimator, counts as 0.
    """
    # With t = log n, the bound is t + expm1(-t): accurate near 0, and without overflow for any KL.
    low, high = 0.0, max(kl, 0.0) + 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if middle + math.expm1(-middle) < kl:
            low = middle
        else:
            high = middle
    return 1 / (1 + math.exp(-low))


def curve_value(kl: float, curve: Sequence[BonCurvePoint]) -> tuple[float, bool]:
    """The win rate of best-of-n at ``kl`` nats, and whether that KL is beyond the last measured n.

    Between measured points, the win rate is interpolated linearly in the tie-free win rate at the same KL.
    This is exact without ties; interpolating in KL would understate the curve, which starts like a square
    root. Measured values are made non-decreasing first. Beyond the last point, the tie-free win rate is
    scaled to meet that point.
    """
    ordered = sorted(curve, key=lambda c: c.kl)
    theory = [tie_free_win_rate(c.kl) for c in ordered]
    measured = np.maximum.accumulate([c.value for c in ordered])
    here = tie_free_win_rate(kl)
    if kl > ordered[-1].kl:
        return min(1.0, float(measured[-1]) * here / theory[-1]), True
    return float(np.interp(here, theory, measured)), False


def efficiencies(points: Sequence[Point], curve: Sequence[BonCurvePoint]) -> list[PointEfficiency]:
    """The efficiency of each point, in order; the values of ``points`` and ``curve`` are win rates."""
    pairs = [(point, *curve_value(point.kl, curve)) for point in points]
    return [PointEfficiency(point, best, point.value / best, far) for point, best, far in pairs]


def method_efficiencies(results: Sequence[PointEfficiency]) -> list[MethodEfficiency]:
    """The efficiencies of each method over all its points, the highest median first."""
    rows = []
    for method in _methods([result.point for result in results]):
        own = [result for result in results if result.point.method == method]
        ratio = median_range([result.ratio for result in own])
        rows.append(MethodEfficiency(method, ratio, sum(result.beyond for result in own)))
    return sorted(rows, key=lambda row: (-row.ratio.median, row.method))


def _methods(points: Iterable[Point]) -> list[str]:
    return list(dict.fromkeys(point.method for point in points))


def _by_seed(values: Iterable[tuple[int, float]]) -> dict[int, list[float]]:
    groups: dict[int, list[float]] = defaultdict(list)
    for seed, value in values:
        groups[seed].append(value)
    return groups
