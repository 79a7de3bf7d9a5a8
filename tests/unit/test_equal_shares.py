"""Frontier shares with equal grids and seeds, against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from training.sweep.equal_shares import equal_shares, resampled_places
from training.sweep.pareto import Point, frontier_flags
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import wilson_interval
from vbon.storage.evaluation_record import MethodRow

pytestmark = pytest.mark.train


def still(points: list[Point], resamples: int = 20) -> np.ndarray:
    """Resamples in which nothing moves."""
    return np.tile([p.place for p in points], (resamples, 1, 1))


def enumerated(points: list[Point], k: int, method: str) -> float:
    """The share over all choices of k points of each method, by drawing each frontier."""
    methods = sorted({p.method for p in points})
    choices = [itertools.combinations([p for p in points if p.method == m], k) for m in methods]
    flags = []
    for chosen in itertools.product(*choices):
        entered = [p for group in chosen for p in group]
        on_it = frontier_flags(entered)
        flags += [f for p, f in zip(entered, on_it, strict=True) if p.method == method]
    return float(np.mean(flags))


@pytest.mark.parametrize("seed", range(6))
def test_shares_are_those_over_all_choices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = {"dense": 6, "middle": 3, "sparse": 2}
    points = [
        Point(method, 0, float(rng.integers(8)), float(rng.integers(8)))
        for method, count in counts.items()
        for _ in range(count)
    ]
    for row in equal_shares(points, still(points)):
        assert row.grid == (2, 2)
        assert row.share.mean == pytest.approx(enumerated(points, 2, row.method))
        by_count = wilson_interval(np.full(counts[row.method], row.share.mean))
        assert (row.share.low, row.share.high) == pytest.approx((by_count.low, by_count.high))


def test_a_dense_grid_of_the_same_quality_has_the_same_share() -> None:
    """Points of one band: 12 of one method, 3 of the other. All points together give .2 and .5."""
    rng = np.random.default_rng(1)
    dense, sparse, plain = [], [], []
    for _ in range(200):
        points = [
            Point(m, 0, k, k + rng.normal(0, 0.3))
            for m, count in (("a", 12), ("b", 3))
            for k in rng.uniform(0, 1, count)
        ]
        found = {row.method: row.share.mean for row in equal_shares(points, still(points, 1))}
        dense.append(found["a"])
        sparse.append(found["b"])
        plain.append(
            np.mean(
                [f for p, f in zip(points, frontier_flags(points), strict=True) if p.method == "a"]
            )
        )
    assert np.mean(dense) == pytest.approx(np.mean(sparse), abs=0.05)
    assert np.mean(plain) < np.mean(dense) - 0.1  # every point: the dense grid dominates itself


def test_only_common_seeds_count() -> None:
    points = [Point("a", 0, 1.0, 0.7), Point("b", 0, 0.9, 0.8), Point("a", 1, 1.0, 0.7)]
    b, a = equal_shares(points, still(points))
    assert (b.method, b.share.mean, b.seeds, b.leads) == ("b", 1.0, (0,), None)
    assert (a.method, a.share.mean, a.leads) == ("a", 0.0, False)  # one point each is no finding


def row(kl: float, win: float, half: float) -> MethodRow:
    interval = MeanInterval(win, win - half, win + half, 64)
    return MethodRow(
        method="m", n=1, reward=interval, win_rate=interval, kl_kind="Rao-Blackwellised",
        kl_nats=MeanInterval(kl, kl, kl, 64),
    )  # fmt: skip


@pytest.mark.parametrize(("half", "leads"), [(0.05, False), (0.002, True)])
def test_shares_within_the_noise_are_not_distinguishable(half: float, leads: bool) -> None:
    """b's three points lie .01 above a's, with intervals of plus or minus .05 or .002."""
    places = [(1.0, 0.70), (1.5, 0.75), (2.0, 0.80)]
    points = [Point("a", 0, *p) for p in places] + [Point("b", 0, k, v + 0.01) for k, v in places]
    resampled = resampled_places([row(*p.place, half) for p in points], "win_rate", [{}] * 6)
    best, other = equal_shares(points, resampled)
    assert (best.method, best.share.mean, other.share.mean) == ("b", 1.0, 0.0)
    assert other.leads is leads


def test_twelve_and_ten_of_twelve_are_not_distinguishable() -> None:
    """Without any noise; the next point decides. Twelve and none are distinguishable."""
    points = [Point("a", 0, float(i), float(i) + 0.5) for i in range(12)]
    for beaten, leads in ((2, False), (12, True)):
        lower = [
            Point("b", 0, float(i), float(i) + (0.4 if i < beaten else 0.5)) for i in range(12)
        ]
        everything = points + lower
        best, other = equal_shares(everything, still(everything))
        assert (best.method, best.share.mean) == ("a", 1.0)
        assert other.share.mean == pytest.approx(1 - beaten / 12)
        assert other.leads is leads


def test_prompts_are_resampled_together() -> None:
    """Two cells that differ by a constant on every prompt keep their order in every resample."""
    wins = np.random.default_rng(0).normal(0.7, 0.1, 64)
    figures = [{"kl_nats": [1.0] * 64, "win_rate": list(wins + d)} for d in (0.0, 0.01)]
    places = resampled_places([row(1.0, 0.7, 0.02)] * 2, "win_rate", figures)
    np.testing.assert_allclose(places[:, 1, 1] - places[:, 0, 1], 0.01)
    assert places[:, 0, 1].std() == pytest.approx(wins.std() / 8, rel=0.15)
