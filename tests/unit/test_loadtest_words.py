"""Sentences and tables of a verdict say no more than the run has measured; values by hand and enumeration."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from service.loadtest.analysis.decision import decide
from service.loadtest.analysis.decision_rewards import equal_n_text, reward_words
from service.loadtest.analysis.quality import baseline_of, curve_matrix, quality_of
from service.loadtest.analysis.text import interval_text
from service.loadtest.observation import ScoredAnswer
from service.loadtest.plan import Variant
from service.loadtest.report.tables import _paid_after
from service.loadtest.schema import BreakEven, VariantCost
from tests.unit.fakes import make_runtime
from tests.unit.test_gold_rewards import GoldReward
from tests.unit.test_loadtest_service import clocked, measure, slow_engines
from tests.unit.test_loadtest_verdict import (
    capacity_of_rounds,
    cell_at,
    compared,
    decision,
    equal_pair,
)
from vbon.maths.intervals import MeanInterval, MedianRange
from vbon.maths.statistics import median_range


def pair_with(given_up: MeanInterval | None, **changes: object) -> BreakEven:
    pair = compared(capacity_of_rounds([100.0] * 5), capacity_of_rounds([10.0] * 5))
    return pair.model_copy(update={"state": "decided", "reward_given_up": given_up, **changes})


# Rewards


def test_equal_rewards_are_equal_and_one_prompt_decides_nothing() -> None:
    assert reward_words(pair_with(MeanInterval(0, 0, 0, 64))) == (
        "Reward of vbon: equal to that of bon (N=4) on all 64 prompts."
    )
    one = MeanInterval(0.5, 0.5, 0.5, 1)
    words = reward_words(
        pair_with(one, equal_n=2.0, equal_n_low=2.0, equal_n_high=2.0, win_rate_tuned=one,
                  win_rate_sampled=one)
    )  # fmt: skip
    assert words == (
        "Reward of vbon: less by 0.50 on the one prompt that was scored, which decides nothing."
    )
    assert "95%" not in words
    assert interval_text(one) == "0.50 (one prompt)"
    nothing = reward_words(pair_with(MeanInterval(0, 0, 0, 1)))
    assert nothing.startswith("Reward of vbon: equal on the one prompt")


def test_what_the_gold_model_judges_is_said_to_be_gold() -> None:
    words = reward_words(pair_with(MeanInterval(0.5, 0.4, 0.6, 64), judged_by="gold"))
    assert words.startswith("Gold reward of vbon: worse by 0.50 [0.40, 0.60] than bon (N=4)")
    lines = decision(
        equal_pair(1.25, 40.0, single_rate=40.0).model_copy(update={"judged_by": "gold"})
    )
    assert "vbon has the gold reward of best-of-2.5" in lines[0]


@pytest.mark.parametrize(
    ("low_open", "high_open", "beyond", "n", "text"),
    [
        (False, False, False, 14.3, "14.3 [10.8, 16.0]"),
        (False, True, False, 14.3, "14.3 [10.8, above 16.0]"),
        (True, False, False, 14.3, "14.3 [below 1, 16.0]"),
        (True, False, True, 1.0, "below one sample"),
        (False, True, True, 16.0, "above best-of-16"),
    ],
)
def test_an_interval_that_ends_beyond_the_curve_is_not_said_to_end_there(
    low_open: bool, high_open: bool, beyond: bool, n: float, text: str
) -> None:
    pair = pair_with(
        MeanInterval(0.5, 0.4, 0.6, 64),
        equal_n=n, equal_n_low=10.8, equal_n_high=16.0, equal_n_beyond=beyond,
        equal_n_low_open=low_open, equal_n_high_open=high_open,
    )  # fmt: skip
    assert equal_n_text(pair) == text
    assert text in reward_words(pair)


def test_an_open_end_opens_the_figures_that_follow_from_it() -> None:
    pair = equal_pair(1.25, 40.0, single_rate=40.0).model_copy(update={"equal_n_high_open": True})
    first = decision(pair)[0]
    assert "more than 26,700 answers (below 26,700 to 26,700)" in first
    assert "costs 2.5 times (2.5 to above 2.5) as much" in first
    assert _paid_after(pair, at_equal_reward=True) == "26,700 (below 26,700 to 26,700)"


def test_gold_rewards_of_best_of_n_are_those_of_what_it_chooses() -> None:
    """Enumeration: of each pair of candidates the better by reward counts with its gold reward."""
    rewards, golds, ref = [0.0, 2.0, 5.0, 3.0], [4.0, 1.0, 0.5, 2.0], [1.0, 2.0, 3.0]
    row = ScoredAnswer(prompt=0, sample=0, reward=5.0, candidates=rewards, gold_candidates=golds)
    against = baseline_of(
        [ScoredAnswer(prompt=0, sample=i, reward=0.0, gold=gold) for i, gold in enumerate(ref)]
    )
    found = quality_of(Variant("bon", 2, True), [row], against)
    chosen = [golds[max(pair, key=rewards.__getitem__)] for pair in combinations(range(4), 2)]
    assert found.gold is not None
    assert found.gold.mean == pytest.approx(np.mean(chosen))
    wins = [(gold > r) + 0.5 * (gold == r) for gold in chosen for r in ref]
    assert found.gold_win_rate is not None
    assert found.gold_win_rate.mean == pytest.approx(np.mean(wins))
    _, curve = curve_matrix([row], 4, gold=True)
    assert curve[0, [0, 1, 3]] == pytest.approx([np.mean(golds), np.mean(chosen), 0.5])
    # Without the gold reward of one candidate nothing is known of the choice.
    holed = row.model_copy(update={"gold_candidates": [4.0, None, 0.5, 2.0]})
    assert quality_of(Variant("bon", 2, True), [holed], against).gold is None
    assert curve_matrix([holed], 4, gold=True)[0] == []


@clocked
async def test_where_the_server_has_a_gold_model_it_judges(tmp_path: Path) -> None:
    runtime = make_runtime(engines=slow_engines(), gold=GoldReward())
    result = await measure(tmp_path, runtime, n=[4], quality_samples=1, duration_s=0.2)
    (pair,) = result.break_even
    quality = {one.variant: one for one in result.quality}
    assert pair.judged_by == "gold"
    assert pair.reward_given_up is not None
    sampled, tuned = quality["bon (N=4)"].prompt_golds, quality["vbon"].prompt_golds
    shared = sampled.keys() & tuned.keys()
    expected = np.mean([sampled[key] - tuned[key] for key in shared])
    assert pair.reward_given_up.mean == pytest.approx(expected)
    # Here gold is the opposite of the reward: what best-of-N wins by one, it loses by the other.
    assert quality["bon (N=4)"].reward != quality["bon (N=4)"].gold
    golds = [point.reward.mean for point in result.gold_curve]
    assert golds == sorted(golds, reverse=True)


# Prices


@pytest.mark.parametrize(
    ("tuned", "sampled", "text"),
    [
        ([100.0] * 5, [10.0] * 5, "11,100 (11,100 to 11,100)"),
        ([8.0] * 5, [10.0] * 5, "never"),
        ([10.0] * 5, [10.0] * 5, "never"),
        ([12.0, 12, 12, 12, 9], [10.0] * 5, "too close to call"),
        ([9.0, 9, 9, 9, 12], [10.0] * 5, "too close to call"),
    ],
)
def test_a_break_even_point_is_told_only_if_every_round_has_one(
    tuned: list[float], sampled: list[float], text: str
) -> None:
    assert _paid_after(compared(capacity_of_rounds(tuned), capacity_of_rounds(sampled))) == text


def test_a_tiny_saving_pays_after_very_many_answers() -> None:
    pair = compared(capacity_of_rounds([10.000001] * 5), capacity_of_rounds([10.0] * 5))
    assert pair.requests == pytest.approx(1e11, rel=1e-3)
    lines = decision(pair.model_copy(update={"state": "decided"}))
    assert lines[0].startswith("Fine-tune (vbon) if you will serve more than 100,000,")


def cost(
    variant: str, low: float, median: float, high: float, *, rising: bool = False
) -> VariantCost:
    return VariantCost(
        variant=variant, source="at 8 in flight", requests_per_s=median_range([1.0]),
        per_1000=median, low=low, high=high, rising=rising,
    )  # fmt: skip


def test_the_cheapest_is_named_only_if_its_range_is_below_all_others() -> None:
    clear = [cost("ref", 0.9, 1, 1.1), cost("vbon", 1.2, 1.3, 1.4)]
    assert "ref is cheapest: 1 EUR" in decide([], clear, [], [], [], "EUR")[0]
    close = [cost("ref", 0.9, 1, 1.1), cost("vbon", 1.05, 1.3, 1.4)]
    said = decide([], close, [], [], [], "EUR")[0]
    assert "ref is as cheap as vbon within the range over rounds: 1 EUR" in said
    alone = decide([], [cost("ref", 0.9, 1, 1.1, rising=True)], [], [], [], "EUR")[0]
    assert "ref is priced: at most 1 EUR" in alone


def test_a_mode_without_an_answer_in_time_is_named() -> None:
    cells = [
        cell_at(name, 8).model_copy(update={"goodput_per_s": MedianRange(rate, rate, rate, 5)})
        for name, rate in (("vbon", 3.0), ("bon (N=4)", 0.0))
    ]
    lines = decide([], [cost("vbon", 0.9, 1, 1.1)], [], cells, [], "EUR")
    assert lines[1] == (
        "bon (N=4) answered nothing within the SLOs in half of the rounds, and so has no price."
    )
    dead = decide([], [], [], [cell_at("vbon", 8)], [], "EUR")
    assert dead == [
        "vbon answered nothing in half of the rounds, and so has no price.",
        "Nothing was answered, so there is nothing to decide.",
    ]
