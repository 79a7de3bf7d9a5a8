"""Whether a run decides, its figures and their ranges, and the advice; values by hand and by enumeration."""

from __future__ import annotations

import numpy as np
import pytest

from service.loadtest.analysis.break_even import (
    Capacity,
    MeasuredVariant,
    TrainingExpense,
    break_even,
    cost_of,
)
from service.loadtest.schema import BreakEven
from vbon.maths.intervals import MedianRange
from vbon.maths.statistics import median_range

NO_CURVE: tuple[list[int], np.ndarray] = ([], np.zeros((0, 1)))


def capacity_of_rounds(rates: list[float] | dict[int, float], *, rising: bool = False) -> Capacity:
    by_round = rates if isinstance(rates, dict) else dict(enumerate(rates))
    return Capacity("at 8 in flight", median_range(list(by_round.values())), by_round, rising)


def compared(tuned: Capacity, sampled: Capacity, training: float = 1.0) -> BreakEven:
    return break_even(
        MeasuredVariant("vbon", tuned, None),
        MeasuredVariant("bon (N=4)", sampled, None, n=4),
        TrainingExpense(1.0, training, "by hand"),
        NO_CURVE,
        price=3.6,
    )


# Points and ranges


def test_a_round_without_answers_leaves_the_point_and_the_range() -> None:
    """Of the goodputs 0 and 20, only 20 has a price: a median of 10 lies outside the range 20 to 20."""
    sampled = capacity_of_rounds([0.0, 20.0])
    cost = cost_of("bon", sampled, 3.6)
    assert (cost.low, cost.per_1000, cost.high) == pytest.approx((0.05, 0.05, 0.05))
    found = compared(capacity_of_rounds([160.0, 160.0]), sampled)
    assert (found.cost_ratio.low, found.cost_ratio.median, found.cost_ratio.high) == (8, 8, 8)
    saved = 0.001 / 20 - 0.001 / 160
    figures = (found.requests_low, found.requests, found.requests_high)
    assert figures == pytest.approx((1 / saved, 1 / saved, 1 / saved))


def test_a_round_of_one_side_only_counts_nowhere() -> None:
    """An interrupted run: round 1 has no best-of-N answers, so only round 0 has a ratio, 100 / 10."""
    found = compared(capacity_of_rounds({0: 100.0, 1: 20.0}), capacity_of_rounds({0: 10.0}))
    assert (found.cost_ratio.low, found.cost_ratio.median, found.cost_ratio.high) == (10, 10, 10)
    assert found.tuned_per_1000 is not None
    assert (found.tuned_per_1000.median, found.tuned_per_1000.count) == (pytest.approx(0.01), 1)


def test_a_searched_rate_is_compared_by_its_ends() -> None:
    """A search found 60, failed at 66; rounds of 8, 10 and 12: ratios of 60/12 to 66/8 around 60/10."""
    searched = Capacity("search", MedianRange(60, 60, 66, 1), {0: 60.0}, searched=True)
    ratio = compared(searched, capacity_of_rounds([8.0, 10.0, 12.0])).cost_ratio
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((5, 6, 8.25))


def test_no_figure_lies_outside_its_range() -> None:
    """Two hundred runs of 1 to 6 rounds, a quarter of the rounds without an answer on one side."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        rounds = int(rng.integers(1, 7))
        sides = [np.exp(rng.normal(level, 0.5, rounds)) for level in (1, 0)]
        for side in sides:
            side[rng.random(rounds) < 0.25] = 0
        if any(np.median(side) == 0 for side in sides):  # no capacity at all
            continue
        tuned, sampled = (capacity_of_rounds(side.tolist()) for side in sides)
        found = compared(tuned, sampled)
        assert found.cost_ratio.low <= found.cost_ratio.median <= found.cost_ratio.high
        if found.requests_low is not None:
            assert found.requests is not None
            assert found.requests_high is not None
            assert found.requests_low <= found.requests <= found.requests_high
        for cost in (cost_of("vbon", tuned, 1.0), cost_of("bon", sampled, 1.0)):
            assert cost.low <= cost.per_1000 <= cost.high
