"""What the points of a sweep say: Pareto shares, efficiency, figures at a target N, cost.

Pure functions. A *place* is ``(KL in nats, value)``; less KL is better and more value is better.
Means over seeds come with the smallest and largest seed, never with an interval: seeds are few.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vbon.maths.intervals import MedianRange
from vbon.maths.statistics import median_range

Place = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """One tuned policy.

    Attributes:
        kl: nats from the reference policy.
        value: what should be high: win rate, reward, or either by the gold reward model.
        target: the N it was trained towards; ``None`` if its parameter is another.
    """

    method: str
    seed: int
    kl: float
    value: float
    target: int | None = None

    @property
    def place(self) -> Place:
        """``(KL, value)``."""
        return self.kl, self.value


@dataclass(frozen=True, slots=True)
class BonCurvePoint:
    """Best-of-n at its KL upper bound in nats; n = 1 is the reference policy at KL 0."""

    n: int
    kl: float
    value: float


@dataclass(frozen=True, slots=True)
class SeedMean:
    """Mean over seeds with the smallest and largest seed; ``seeds`` is how many there are."""

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, slots=True)
class ParetoRow:
    """How often a method is on the frontier; shares lie in [0, 1].

    Attributes:
        points: of this method, all seeds together.
        on_frontier: how many of them no tuned point of their seed dominates.
        share: that share, taken within each seed.
        share_with_curve: the share left when the best-of-n curve competes too.
        of_frontier: the method's part of the tuned frontier, taken within each seed.
    """

    method: str
    points: int
    on_frontier: int
    share: SeedMean
    share_with_curve: SeedMean
    of_frontier: SeedMean


@dataclass(frozen=True, slots=True)
class Efficiency:
    """A point's win rate over best-of-n's at the same KL; ``beyond`` the last measured n or not."""

    point: Point
    curve_value: float
    ratio: float
    beyond: bool


@dataclass(frozen=True, slots=True)
class EfficiencyRow:
    """Median and range of a method's efficiencies; ``beyond`` counts the extrapolated ones."""

    method: str
    ratio: MedianRange
    beyond: int


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A method trained towards one N, beside best-of-N itself; ratios are method over best-of-N."""

    method: str
    points: int
    win_rate: SeedMean
    win_ratio: SeedMean
    kl: SeedMean
    kl_ratio: SeedMean


def over_seeds(values: Mapping[int, Sequence[float]]) -> SeedMean:
    """Mean, smallest and largest of the seeds' own means.

    Raises:
        ValueError: without any value.
    """
    means = [float(np.mean(values[seed])) for seed in sorted(values) if len(values[seed])]
    if not means:
        raise ValueError("no seed has a value")
    return SeedMean(float(np.mean(means)), min(means), max(means), len(means))


def dominates(one: Place, other: Place) -> bool:
    """No more KL and no less value, and one of the two strictly; equal places spare each other."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def frontier_flags(points: Sequence[Point], curve: Sequence[BonCurvePoint] = ()) -> list[bool]:
    """For each point, whether no point of its own seed, nor of ``curve``, dominates it."""
    rivals: dict[int, list[Place]] = defaultdict(lambda: [(c.kl, c.value) for c in curve])
    for point in points:
        rivals[point.seed].append(point.place)
    return [not any(dominates(r, p.place) for r in rivals[p.seed]) for p in points]


def pareto_rows(points: Sequence[Point], curve: Sequence[BonCurvePoint]) -> list[ParetoRow]:
    """Frontier shares per method, the highest share first.

    A seed's points compete with each other only, so that no method gains by running more seeds;
    the curve, which has no seed, competes in every one of them.
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
        rows.append(ParetoRow(method, len(flags), int(sum(flags)), *shares))
    return sorted(rows, key=lambda row: (-row.share.mean, -row.on_frontier, row.method))


def tie_free_win_rate(kl: float) -> float:
    """``n / (n + 1)`` at the real n >= 1 whose bound ``log n - (n-1)/n`` is ``kl`` nats.

    That is best-of-n's win rate without ties; KL below 0, an estimator's noise, counts as 0.
    """
    # With t = log n the bound is t + expm1(-t): exact near 0, no overflow for any KL.
    low, high = 0.0, max(kl, 0.0) + 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if middle + math.expm1(-middle) < kl:
            low = middle
        else:
            high = middle
    return 1 / (1 + math.exp(-low))


def curve_value(kl: float, curve: Sequence[BonCurvePoint]) -> tuple[float, bool]:
    """Best-of-n's win rate at ``kl`` nats, and whether that is beyond the last measured n.

    Between measured points it is linear in the tie-free win rate at the same KL, which is exact
    without ties (the curve starts like a square root: linear in KL would understate it); measured
    values are first made non-decreasing. Beyond, the tie-free theory scaled to meet the last point.
    """
    ordered = sorted(curve, key=lambda c: c.kl)
    theory = [tie_free_win_rate(c.kl) for c in ordered]
    measured = np.maximum.accumulate([c.value for c in ordered])
    here = tie_free_win_rate(kl)
    if kl > ordered[-1].kl:
        return min(1.0, float(measured[-1]) * here / theory[-1]), True
    return float(np.interp(here, theory, measured)), False


def efficiencies(points: Sequence[Point], curve: Sequence[BonCurvePoint]) -> list[Efficiency]:
    """One a point, in order; ``points`` and ``curve`` carry win rates."""
    pairs = [(point, *curve_value(point.kl, curve)) for point in points]
    return [Efficiency(point, best, point.value / best, far) for point, best, far in pairs]


def efficiency_rows(results: Sequence[Efficiency]) -> list[EfficiencyRow]:
    """Per method over all its points, the highest median first."""
    rows = []
    for method in _methods([result.point for result in results]):
        own = [result for result in results if result.point.method == method]
        ratio = median_range([result.ratio for result in own])
        rows.append(EfficiencyRow(method, ratio, sum(result.beyond for result in own)))
    return sorted(rows, key=lambda row: (-row.ratio.median, row.method))


def targets(points: Sequence[Point], curve: Sequence[BonCurvePoint]) -> list[int]:
    """Every n > 1 of the curve that some point was trained towards, ascending."""
    measured = {c.n for c in curve if c.n > 1}
    return sorted(measured & {p.target for p in points if p.target is not None})


def target_rows(
    points: Sequence[Point], curve: Sequence[BonCurvePoint], num_samples: int
) -> list[TargetRow]:
    """Methods trained towards N = ``num_samples``, the closest to best-of-N's win rate first.

    Raises:
        ValueError: if the curve has no such n.
    """
    best = next((c for c in curve if c.n == num_samples), None)
    if best is None:
        raise ValueError(f"best-of-{num_samples} was not measured")
    aimed = [point for point in points if point.target == num_samples]
    rows = []
    for method in _methods(aimed):
        own = [point for point in aimed if point.method == method]
        rows.append(
            TargetRow(
                method=method,
                points=len(own),
                win_rate=over_seeds(_by_seed((p.seed, p.value) for p in own)),
                win_ratio=over_seeds(_by_seed((p.seed, p.value / best.value) for p in own)),
                kl=over_seeds(_by_seed((p.seed, p.kl) for p in own)),
                kl_ratio=over_seeds(_by_seed((p.seed, p.kl / best.kl) for p in own)),
            )
        )
    return sorted(rows, key=lambda row: (abs(row.win_rate.mean - best.value), row.method))


def _methods(points: Iterable[Point]) -> list[str]:
    return list(dict.fromkeys(point.method for point in points))


def _by_seed(values: Iterable[tuple[int, float]]) -> dict[int, list[float]]:
    groups: dict[int, list[float]] = defaultdict(list)
    for seed, value in values:
        groups[seed].append(value)
    return groups
