"""Frontier tables against figures derived by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.sweep.pareto import (
    BonCurvePoint,
    Point,
    curve_dominates,
    curve_value,
    dominates,
    efficiencies,
    frontier_flags,
    frontier_shares,
    method_efficiencies,
    over_seeds,
    tie_free_win_rate,
)
from vbon.maths.distribution import bon_pmf

pytestmark = pytest.mark.train


def bound(n: float) -> float:
    return math.log(n) - (n - 1) / n


CURVE = [BonCurvePoint(n, bound(n), n / (n + 1)) for n in (1, 2, 4, 8)]


def point(method: str, kl: float, value: float, seed: int = 0) -> Point:
    return Point(method, seed, kl, value)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1.0, 0.7), (2.0, 0.6), True),
        ((1.0, 0.7), (1.0, 0.6), True),  # same KL, more value
        ((1.0, 0.7), (2.0, 0.7), True),  # same value, less KL
        ((1.0, 0.7), (1.0, 0.7), False),  # equal: neither is better
        ((1.0, 0.7), (0.5, 0.6), False),
        ((1.0, 0.7), (2.0, 0.8), False),
        ((2.0, 0.6), (1.0, 0.7), False),
    ],
)
def test_domination(one: tuple[float, float], other: tuple[float, float], expected: bool) -> None:
    assert dominates(one, other) is expected


def test_shares_are_taken_within_each_seed_then_averaged() -> None:
    points = [
        point("a", 1.0, 0.7), point("a", 2.0, 0.6),  # seed 0: the second is dominated by the first
        point("b", 0.5, 0.6), point("b", 3.0, 0.9),  # seed 0: both stand
        point("a", 1.0, 0.7, seed=1), point("b", 0.9, 0.8, seed=1),  # seed 1: b dominates a
    ]  # fmt: skip
    # Best-of-1 is (0, .5), best-of-2 (.193, .667), 4 (.636, .8), 8 (1.204, .889).
    # Seed 0: best-of-2 dominates (.5, .6) and best-of-4 (1, .7); nothing reaches .9.
    # Seed 1: best-of-4 dominates (.9, .8): the same value at less KL.
    b, a = frontier_shares(points, CURVE)
    assert (b.method, b.points, b.on_frontier) == ("b", 3, 3)
    assert (a.method, a.points, a.on_frontier) == ("a", 3, 1)
    assert (a.share.mean, a.share.low, a.share.high, a.share.seeds) == (0.25, 0.0, 0.5, 2)
    assert (b.share.mean, b.share.low, b.share.high) == (1.0, 1.0, 1.0)
    assert b.share_with_curve.mean == pytest.approx((0.5 + 0) / 2)
    assert a.share_with_curve.mean == 0.0
    assert b.of_frontier.mean == pytest.approx((2 / 3 + 1) / 2)
    assert a.of_frontier.mean == pytest.approx((1 / 3 + 0) / 2)


def test_a_seed_a_method_lacks_does_not_count_against_it() -> None:
    rows = frontier_shares([point("a", 1.0, 0.7), point("b", 1.0, 0.7, seed=1)], CURVE)
    assert [(row.method, row.share.mean, row.share.seeds) for row in rows] == [
        ("a", 1.0, 1), ("b", 1.0, 1),
    ]  # fmt: skip


def test_mean_over_seeds_weights_seeds_alike() -> None:
    result = over_seeds({0: [1.0, 3.0], 1: [5.0]})
    assert (result.mean, result.low, result.high, result.seeds) == (3.5, 2.0, 5.0, 2)
    with pytest.raises(ValueError, match="no seed"):
        over_seeds({0: []})


places = st.tuples(
    st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), st.sampled_from([0.5, 0.6, 0.7, 0.8])
)
clouds = st.lists(
    st.builds(lambda p, m, s: point(m, *p, seed=s), places, st.sampled_from("ab"), st.integers(0, 1)),
    min_size=1, max_size=12,
)  # fmt: skip


@given(clouds, st.data())
def test_a_dominated_newcomer_moves_nobody(cloud: list[Point], data: st.DataObject) -> None:
    above = data.draw(st.sampled_from(cloud))
    newcomer = point("new", above.kl + 0.25, above.value - 0.05, seed=above.seed)
    flags = frontier_flags([*cloud, newcomer])
    assert flags[:-1] == frontier_flags(cloud)
    assert flags[-1] is False


@given(clouds)
def test_every_seed_has_a_frontier_and_what_is_off_it_is_dominated_from_it(
    cloud: list[Point],
) -> None:
    flags = frontier_flags(cloud)
    standing = [p for p, flag in zip(cloud, flags, strict=True) if flag]
    assert {p.seed for p in standing} == {p.seed for p in cloud}
    for p, flag in zip(cloud, flags, strict=True):
        rivals = [q for q in standing if q.seed == p.seed and dominates(q.place, p.place)]
        assert bool(rivals) is not flag


@given(clouds)
def test_shares_are_shares_and_the_curve_only_takes(cloud: list[Point]) -> None:
    rows = frontier_shares(cloud, CURVE)
    for row in rows:
        assert 0 <= row.share_with_curve.mean <= row.share.mean <= 1
    for seed in {p.seed for p in cloud}:
        one = frontier_shares([p for p in cloud if p.seed == seed], CURVE)
        assert sum(row.of_frontier.mean for row in one) == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 1.5, 2, 3.7, 16, 1000, 1e12])
def test_tie_free_win_rate_inverts_the_bound(n: float) -> None:
    assert tie_free_win_rate(bound(n)) == pytest.approx(n / (n + 1), abs=1e-7)


@pytest.mark.parametrize(("kl", "expected"), [(-0.01, 0.5), (0.0, 0.5), (5000.0, 1.0)])
def test_tie_free_win_rate_at_the_ends(kl: float, expected: float) -> None:
    assert tie_free_win_rate(kl) == pytest.approx(expected)


def test_without_ties_the_curve_is_exact_between_its_points() -> None:
    assert curve_value(bound(3), CURVE) == (pytest.approx(3 / 4), False)
    assert curve_value(bound(1.2), CURVE) == (pytest.approx(1.2 / 2.2), False)


def test_with_ties_the_curve_meets_its_points_and_is_scaled_beyond_them() -> None:
    tied = [
        BonCurvePoint(1, 0.0, 0.5),
        BonCurvePoint(2, bound(2), 0.6),
        BonCurvePoint(4, bound(4), 0.72),
    ]
    for c in tied:
        assert curve_value(c.kl, tied) == (pytest.approx(c.value), False)
    # Theory between n = 2 (2/3) and 4 (4/5) at n = 2.75: 11/15, half way; so is (.6 + .72) / 2.
    assert curve_value(bound(2.75), tied)[0] == pytest.approx(0.66)
    # Beyond: .72 / (4/5) of theory's 9/10 at n = 9.
    assert curve_value(bound(9), tied) == (pytest.approx(0.81), True)


def test_beyond_the_curve_no_win_rate_exceeds_one() -> None:
    generous = [BonCurvePoint(1, 0.0, 0.5), BonCurvePoint(2, bound(2), 0.9)]
    assert curve_value(6.0, generous) == (1.0, True)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.5, 0.9), min_size=3, max_size=3),
    st.lists(st.floats(0, 4), min_size=2, max_size=8),
)
def test_the_curve_never_falls(values: list[float], distances: list[float]) -> None:
    curve = [BonCurvePoint(1, 0.0, 0.5)]
    curve += [BonCurvePoint(n, bound(n), v) for n, v in zip((2, 4, 8), values, strict=True)]
    reached = [curve_value(kl, curve)[0] for kl in sorted(distances)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(reached))


def test_efficiency_is_win_rate_over_the_curve_at_the_same_kl() -> None:
    points = [
        point("a", bound(3), 0.6), point("a", bound(4), 0.8), point("a", bound(19), 0.19),
        point("b", bound(4), 0.76),
    ]  # fmt: skip
    results = efficiencies(points, CURVE)
    assert [r.ratio for r in results] == pytest.approx([0.8, 1.0, 0.2, 0.95])
    assert [r.beyond for r in results] == [False, False, True, False]
    b, a = method_efficiencies(results)
    assert (a.method, a.ratio.count, a.beyond) == ("a", 3, 1)
    assert (a.ratio.median, a.ratio.low, a.ratio.high) == pytest.approx((0.8, 0.2, 1.0))
    assert (b.method, b.ratio.median, b.beyond) == ("b", pytest.approx(0.95), 0)


def test_a_coin_between_two_n_competes() -> None:
    """Half of best-of-2 (2/3 at .193) and best-of-4 (4/5 at .636): 11/15 at .415 nats."""
    middle = (bound(2) + bound(4)) / 2
    assert curve_dominates(CURVE, (middle, 0.73))
    assert not curve_dominates(CURVE, (middle, 0.74))
    assert not curve_dominates(
        CURVE, (middle, (2 / 3 + 4 / 5) / 2)
    )  # on the line: neither is better
    assert curve_dominates(CURVE, (9.0, 0.88))  # beyond the last n, the last n competes
    assert not curve_dominates(CURVE, (9.0, 0.9))
    assert not curve_dominates(CURVE, (-0.01, 0.4))  # less KL than the reference, by noise
    assert not curve_dominates([], (1.0, 0.5))
    assert frontier_flags([point("a", middle, 0.73)], CURVE) == [False]
    assert frontier_flags([point("a", middle, 0.74)], CURVE) == [True]


def test_the_coins_kl_is_at_most_on_the_line() -> None:
    """Enumerated: a coin between best-of-2 and best-of-4 of 50 outcomes, at seven chances."""
    p = np.full(50, 1 / 50)
    two, four = (bon_pmf(p, np.arange(50.0), n) for n in (2, 4))

    def kl(q: np.ndarray) -> float:
        return float((q * np.log(q / p)).sum())

    for chance in np.linspace(0.05, 0.95, 7):
        mixed = chance * two + (1 - chance) * four
        assert kl(mixed) <= chance * kl(two) + (1 - chance) * kl(four)
