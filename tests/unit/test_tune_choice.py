"""The choice of a setting: prices, limits, finalists, and the test in a fixed order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.tune.choice import best, closest, finalists, front, passed, shortfall, test_order
from service.tune.drawing import Drawing, Float
from service.tune.latency import LatencyModel, Timing, measured_counts
from service.tune.question import Priced, Question, priced
from service.tune.setting import BON, Measured, Setting, setting_of
from vbon.maths.intervals import MeanInterval
from vbon.measured.target import Target

REF, TUNED = Drawing("ref", 1.0, 1.0, 40), Drawing("vbon", 0.7, 1.0, 40)
test_order.__test__ = False  # type: ignore[attr-defined]  # a function of ours, not a test


def setting(n: int, drawing: Drawing = REF) -> Setting:
    return setting_of(drawing.policy if n == 1 else BON, drawing, n, {})


def measured(n: int, gain: Float, drawing: Drawing = REF, tokens: float = 10.0) -> Measured:
    return Measured(setting(n, drawing), {"reward": gain}, np.full(len(gain), tokens * n))


def rows(question: Question, *found: Measured, level: Float | float | None = 1.0) -> list[Priced]:
    return priced(question, found, level, LatencyModel())


QUESTION = Question(Target("reward", 1.0), "reward", "tokens")
SPREAD = np.array([-0.1, 0.1] * 8)


def test_the_smallest_n_is_chosen_whose_lower_bound_meets_the_target() -> None:
    """N = 3 exceeds the target on average, but not at its lower bound."""
    found = rows(
        QUESTION,
        *(measured(n, SPREAD + gain) for n, gain in [(2, 0.9), (3, 1.02), (4, 1.2), (5, 1.3)]),
    )
    winner = best(QUESTION, found)
    assert winner is not None
    assert winner.setting.n == 4
    assert found[1].gains["reward"].mean > 1
    assert not found[1].feasible


def test_the_level_of_best_of_k_is_paired_by_prompt() -> None:
    """Prompts differ by 100, and a gain of .01 on each of them is found all the same."""
    level = np.linspace(0, 100, 16)
    found = rows(QUESTION, measured(2, level + 0.01), measured(3, level), level=level)
    assert [row.feasible for row in found] == [True, True]
    assert found[0].margin is not None
    assert found[0].margin.low == pytest.approx(0.01)


def test_prompts_without_a_gain_are_left_out_and_a_row_without_any_is_no_zero() -> None:
    gain = SPREAD + 1.5
    gain[:3] = np.nan
    found = rows(QUESTION, measured(2, gain), measured(3, np.full(16, np.nan)))
    assert [row.setting.n for row in found] == [2]
    assert found[0].gains["reward"].count == 13
    assert found[0].gains["reward"].mean == pytest.approx(np.nanmean(gain))


def test_limits_are_said_with_the_excess_and_the_closest_lies_within_them() -> None:
    question = Question(Target("reward", 1.0), "reward", "tokens", most_tokens=25)
    found = rows(question, measured(2, SPREAD + 0.8), measured(4, SPREAD + 1.2))
    assert best(question, found) is None
    nearest = closest(question, found)
    assert nearest is not None
    assert nearest.setting.n == 2
    assert "misses reward >= 1 by" in shortfall(question, nearest)
    assert "40 tokens an answer, over 25" in shortfall(question, found[1])


def test_without_a_target_the_highest_gain_within_the_limits_is_chosen() -> None:
    question = Question(None, "reward", "tokens", most_tokens=45)
    found = rows(question, *(measured(n, SPREAD + n) for n in (1, 2, 4, 5)), level=None)
    winner = best(question, found)
    assert winner is not None
    assert winner.setting.n == 4


def test_finalists_are_the_best_of_each_family_and_the_nearest_fill_up() -> None:
    found = rows(
        QUESTION,
        *(measured(n, SPREAD + 0.5 + n / 5) for n in (2, 3, 4, 5)),
        *(measured(n, SPREAD + n / 10, TUNED) for n in (2, 3)),
    )
    chosen = finalists(QUESTION, found, 5)
    assert [(row.setting.drawing.policy, row.setting.n) for row in chosen] == [
        ("ref", 3),
        ("vbon", 3),
    ]
    assert not chosen[1].feasible


def test_the_test_goes_from_the_safest_to_the_cheapest_and_stops_at_the_first_failure() -> None:
    found = rows(QUESTION, *(measured(n, SPREAD + 0.7 + n / 5) for n in (2, 3, 4, 5)))
    order = test_order(QUESTION, found)
    assert [row.setting.n for row in order] == [5, 4, 3, 2]
    again = rows(
        QUESTION,
        *(measured(n, SPREAD + gain) for n, gain in [(5, 1.5), (4, 1.4), (3, 0.9), (2, 1.3)]),
    )
    assert [row.setting.n for row in passed(QUESTION, again)] == [4, 5]
    assert passed(QUESTION, again[2:]) == []


def test_a_dearer_setting_with_less_margin_is_not_tested() -> None:
    found = rows(
        QUESTION,
        measured(2, SPREAD + 1.5),
        measured(3, SPREAD + 1.2),
        measured(1, SPREAD + 1.3, TUNED),
    )
    assert [row.setting.n for row in test_order(QUESTION, found)] == [2, 1]


def test_the_front_has_no_row_that_another_beats_in_both() -> None:
    found = rows(QUESTION, *(measured(n, SPREAD + g) for n, g in [(1, 0), (2, 3), (3, 2), (4, 5)]))
    assert [row.setting.n for row in front(QUESTION, found)] == [1, 2, 4]


def timing(seconds: float, rate: float) -> Timing:
    mean = MeanInterval(seconds, seconds * 0.9, seconds * 1.1, 20)
    p95 = MeanInterval(2 * seconds, 1.8 * seconds, 2.2 * seconds, 20)
    return Timing(mean, p95, rate, 20, 0)


def latency() -> LatencyModel:
    model = LatencyModel()
    for n, seconds, rate in [(1, 0.1, 100.0), (2, 0.2, 50.0), (6, 0.4, 10.0)]:
        model.add(setting(n), timing(seconds, rate))
    return model


def test_latency_is_interpolated_between_the_measured_n_and_never_beyond() -> None:
    found = latency().expected(measured(4, SPREAD))
    assert found is not None
    assert found.mean_s.mean == pytest.approx(0.3)
    assert found.p95_s.mean == pytest.approx(0.6)
    assert found.seconds_per_answer == pytest.approx((1 / 50 + 1 / 10) / 2)
    assert latency().expected(measured(7, SPREAD)) is None
    assert latency().expected(measured(2, SPREAD, TUNED)) is None
    assert measured_counts(16) == [1, 2, 6, 16]
    assert measured_counts(1) == [1]


def test_a_rule_that_stops_drawing_takes_the_time_of_its_rounds() -> None:
    """Of rounds of 2 and 1, on average 3 and in the slowest twentieth 5: .2 + 2 x .1, and .4 + 4 x .2."""
    own = setting_of("adaptive-bon", REF, 6, {"min_n": 2, "round_size": 1})
    row = Measured(own, {"reward": SPREAD}, np.full(16, 30.0), rounds=(3.0, 5.0))
    found = latency().expected(row)
    assert found is not None
    assert found.mean_s.mean == pytest.approx(0.2 + 2 * 0.1)
    assert found.p95_s.mean == pytest.approx(0.4 + 4 * 0.2)
    assert found.seconds_per_answer == pytest.approx((1 / 50 + 1 / 10) / 2)
    for n in (1, 2, 16):  # max_n takes the place of n, whichever is larger
        other = setting_of("adaptive-bon", REF, n, {"min_n": 2, "round_size": 1, "max_n": 6})
        assert latency().expected(replace(row, setting=other)) == found


def test_prices_are_tokens_money_or_seconds_and_p95_is_a_limit() -> None:
    for price, per_hour, expected in [
        ("tokens", None, 20.0),
        ("cost", None, 20.0),
        ("cost", 3.6, 3.6 / 3600 / 50),
        ("latency", None, 0.2),
    ]:
        question = Question(None, "reward", price, 300.0, None, per_hour)  # type: ignore[arg-type]
        found = priced(question, [measured(2, SPREAD), measured(4, SPREAD)], None, latency())
        assert found[0].price == pytest.approx(expected)
        assert found[0].over_limits == ("p95 latency 400 ms, over 300 ms",)
