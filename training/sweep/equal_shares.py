"""Frontier shares on equal terms: as many points of every method, the same seeds, and an interval.

A dense grid dominates its own points, and a method with a single point is on the frontier or not. So each
method enters with k of its points of a seed, chosen at random, where k is the smallest number of points that
a method has. The share is the probability that a point of the method is then on the frontier. It needs no
drawing: if d of a rival's m points dominate a point, none of them enters with chance C(m - d, k)/C(m, k).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.sweep.pareto import Point
from vbon.maths.crossed_bootstrap import prompt_weights, seed_weights
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import wilson_interval
from vbon.storage.evaluation_record import MethodRow

Float = NDArray[np.float64]
RESAMPLES = 400
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class EqualShare:
    """A method's share of frontier points on equal terms.

    Attributes:
        grid: the smallest and largest number of points per seed with which each method entered.
        seeds: the seeds that were compared.
        share: with its 95% interval: over seeds and prompts, or Wilson's for the number of points, whichever
            reaches further. Wilson's has a width even where all seeds agree.
        leads: whether the largest share is distinguishable from this one, by the resamples and by the number
            of points; ``None`` for the largest.
    """

    method: str
    grid: tuple[int, int]
    seeds: tuple[int, ...]
    share: MeanInterval
    leads: bool | None


def equal_shares(points: Sequence[Point], places_RN2: Float) -> list[EqualShare]:
    """The shares of all methods, the largest first.

    Seeds that some method lacks are left out; if no seed is left, every method keeps its own seeds.

    Args:
        places_RN2: KL and value of every point, in each of R resamples of the prompts.
    """
    methods = list(dict.fromkeys(point.method for point in points))
    seeds_of = {m: {p.seed for p in points if p.method == m} for m in methods}
    common = set.intersection(*seeds_of.values()) or set.union(*seeds_of.values())
    exact = np.array([[point.place for point in points]], dtype=np.float64)
    by_seed = {
        seed: [i for i, point in enumerate(points) if point.seed == seed] for seed in sorted(common)
    }
    found = {seed: _seed_shares(points, index, exact) for seed, index in by_seed.items()}
    drawn = {seed: _seed_shares(points, index, places_RN2) for seed, index in by_seed.items()}
    rng = np.random.default_rng(0)
    weights = seed_weights(len(by_seed), len(places_RN2), rng)
    shares = {
        m: _over_seeds(found, m, np.full((1, len(by_seed)), 1 / len(by_seed))) for m in methods
    }
    resampled = {m: _over_seeds(drawn, m, weights) for m in methods}
    ordered = sorted(methods, key=lambda m: (-float(shares[m][0]), m))
    grids = [_smallest_grid(points, index) for index in by_seed.values()]
    counts = {m: sum(p.method == m and p.seed in common for p in points) for m in methods}
    first = ordered[0]

    def leads(method: str) -> bool:
        often = np.quantile(resampled[first] - resampled[method], 0.025) > 0
        return bool(often) and _differ(
            (float(shares[first][0]), counts[first]), (float(shares[method][0]), counts[method])
        )

    return [
        EqualShare(
            method,
            (min(grids), max(grids)),
            tuple(by_seed),
            _share_interval(float(shares[method][0]), resampled[method], counts[method]),
            None if method == first else leads(method),
        )
        for method in ordered
    ]


def resampled_places(
    rows: Sequence[MethodRow], field: str, per_prompt: Sequence[Mapping[str, Sequence[float]]]
) -> Float:
    """KL and ``field`` of every row in 400 resamples of the prompts, shape ``(R, N, 2)``.

    Rows measured on the same prompts are resampled together. Records without figures of single prompts give
    independent normal deviations as wide as their intervals.
    """
    rng = np.random.default_rng(1)
    columns = ("kl_nats", field)
    lengths = {len(figures.get(column, ())) for figures in per_prompt for column in columns}
    if len(lengths) == 1 and lengths != {0}:
        values = np.array([[figures[column] for column in columns] for figures in per_prompt])
        weights = prompt_weights(lengths.pop(), RESAMPLES, rng)
        return np.einsum("ncp,rp->rnc", values, weights)
    intervals = [[getattr(row, column) for column in columns] for row in rows]
    mean = np.array([[one.mean for one in pair] for pair in intervals])
    deviation = np.array([[(one.high - one.low) / (2 * _Z) for one in pair] for pair in intervals])
    return mean + deviation * rng.standard_normal((RESAMPLES, *mean.shape))


def _smallest_grid(points: Sequence[Point], index: Sequence[int]) -> int:
    methods = [points[i].method for i in index]
    return min(methods.count(method) for method in methods)


def _seed_shares(points: Sequence[Point], index: Sequence[int], places: Float) -> dict[str, Float]:
    """The share of each method in one seed, in each resample, shape ``(R,)``."""
    methods = np.array([points[i].method for i in index])
    k = _smallest_grid(points, index)
    kl, value = places[:, index, 0], places[:, index, 1]
    beaten = (kl[:, None, :] <= kl[:, :, None]) & (value[:, None, :] >= value[:, :, None])
    beaten &= (kl[:, None, :] != kl[:, :, None]) | (value[:, None, :] != value[:, :, None])
    on_frontier = np.ones(kl.shape)
    for rival in dict.fromkeys(methods.tolist()):
        of_rival = methods == rival
        dominating = beaten[:, :, of_rival].sum(2)
        size = int(of_rival.sum())
        others = _absent_chance(size, k)[dominating]
        own = _absent_chance(size - 1, k - 1)[np.minimum(dominating, size - 1)]
        on_frontier *= np.where(of_rival, own, others)
    return {m: on_frontier[:, methods == m].mean(1) for m in dict.fromkeys(methods.tolist())}


def _absent_chance(size: int, chosen: int) -> Float:
    """Probability that none of d given points is among ``chosen`` of ``size``, for d = 0..size."""
    total = math.comb(size, chosen)
    return np.array([math.comb(size - d, chosen) / total for d in range(size + 1)])


def _over_seeds(shares: Mapping[int, Mapping[str, Float]], method: str, weights: Float) -> Float:
    """The weighted mean over the seeds that the method has."""
    has = [method in of_seed for of_seed in shares.values()]
    own = np.stack([of_seed[method] for of_seed in shares.values() if method in of_seed], axis=1)
    if all(has):
        return (own * weights).sum(1)
    return own.mean(1)


def _share_interval(point: float, drawn: Float, count: int) -> MeanInterval:
    low, high = (float(value) for value in np.quantile(drawn, [0.025, 0.975]))
    by_count = wilson_interval(np.full(count, point))
    return MeanInterval(
        point, max(0.0, min(by_count.low, low)), min(1.0, max(by_count.high, high)), count
    )


def _differ(one: tuple[float, int], other: tuple[float, int]) -> bool:
    """Tell whether two shares, each of a number of points, differ at the 5% level (pooled z test)."""
    (share, count), (less, of) = one, other
    pooled = (share * count + less * of) / (count + of)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / count + 1 / of))
    return abs(share - less) > _Z * deviation
