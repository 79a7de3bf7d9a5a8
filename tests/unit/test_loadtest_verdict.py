"""Whether a run decides, its figures and their ranges, and the advice; values by hand and by enumeration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.loadtest.analysis.break_even import (
    Capacity,
    MeasuredVariant,
    TrainingExpense,
    break_even,
    capacity_of,
    cost_of,
)
from service.loadtest.analysis.decision import decide
from service.loadtest.analysis.decision_rewards import reward_words
from service.loadtest.analysis.quality import quality_of
from service.loadtest.analysis.verdict import Side, judged
from service.loadtest.observation import ScoredAnswer
from service.loadtest.plan import Variant
from service.loadtest.schema import BreakEven, CellResult, RoundResult, Saturation, VariantCost
from vbon.maths.intervals import MeanInterval, MedianRange
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


def test_the_range_of_a_searched_rate_holds_its_bracket() -> None:
    """60/s passed in rounds and 66/s failed, 10/s passed and 12/s failed: 60/12 to 66/10 around 60/10."""
    tuned, sampled = (
        Capacity(
            "search",
            MedianRange(rate, rate, rate * above, 2),
            {0: rate, 1: rate},
            False,
            True,
            above,
        )
        for rate, above in ((60.0, 1.1), (10.0, 1.2))
    )
    found = compared(tuned, sampled, training=0.001)
    ratio = found.cost_ratio
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((5, 6, 6.6))
    assert found.requests_low == pytest.approx(1 / (1 / 10 - 1 / 66))
    assert found.requests == pytest.approx(1 / (1 / 10 - 1 / 60))
    assert found.requests_high == pytest.approx(1 / (1 / 12 - 1 / 60))


def test_a_searched_rate_counts_as_often_as_its_rounds_met_the_limit() -> None:
    """60/s was confirmed; in its rounds 100%, 95% and 90% were in time: 60, 57 and 54 good answers/s."""
    rounds = [
        RoundResult(
            round=i, requests=9, requests_per_s=58, returned_tokens_per_s=1, p50_e2e_ms=1, p95_e2e_ms=2,
            goodput_per_s=1.0, goodput_share=share,
        )
        for i, share in enumerate((1.0, 0.95, 0.9))
    ]  # fmt: skip
    cell = cell_at("vbon", 60).model_copy(update={"load_kind": "open", "rounds": rounds})
    search = Saturation(
        variant="vbon", slo_ms=500, rate=60, above=66, p95_ms=400, probes=[], confirmed=True
    )
    found = capacity_of("vbon", [cell], [search])
    assert found is not None
    assert found.by_round == pytest.approx({0: 60, 1: 57, 2: 54})
    assert (found.searched, found.rising, found.above) == (True, False, pytest.approx(1.1))
    cost = cost_of("vbon", found, 3.6)
    assert (cost.low, cost.per_1000, cost.high) == pytest.approx((1 / 66, 1 / 57, 1 / 54))


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
        if found.requests is not None:
            assert found.requests_low is not None
            most = np.inf if found.requests_high is None else found.requests_high
            assert found.requests_low <= found.requests <= most
        else:
            assert (found.requests_low, found.requests_high) == (None, None)
        for cost in (cost_of("vbon", tuned, 1.0), cost_of("bon", sampled, 1.0)):
            assert cost.low <= cost.per_1000 <= cost.high


# States


def cell_at(variant: str, load: float, *, streamed: bool = False) -> CellResult:
    known = {
        "variant": variant,
        "mode": variant,
        "n": 1,
        "load_kind": "closed",
        "load": load,
        "requests": 9,
        "errors": {},
        "streamed": streamed,
        "requests_per_s": median_range([1.0]),
        "generated_tokens_per_s": median_range([1.0]),
        "returned_tokens_per_s": median_range([1.0]),
        "client_cpu": 0.0,
        "rounds": [],
    }
    return CellResult(**dict.fromkeys(set(CellResult.model_fields) - set(known)), **known)


def side_of(
    name: str,
    rates: list[float],
    loads: tuple[float, ...] = (8, 32),
    *,
    rising: bool = False,
    searched: bool = False,
    streamed: bool = False,
    adapter: bool = False,
    n: int = 1,
) -> Side:
    capacity = replace(capacity_of_rounds(rates, rising=rising), searched=searched)
    cells = [cell_at(name, load, streamed=streamed).model_copy(update={"n": n}) for load in loads]
    return Side(MeasuredVariant(name, capacity, None), cells, adapter)


TUNED, SAMPLED = [100.0, 101, 102, 103, 104], [10.0, 10, 10, 10, 10]


def judged_pair(
    tuned: Side, sampled: Side, *, scored: bool = True, complete: bool = True
) -> BreakEven:
    pair = compared(tuned.capacity, sampled.capacity)
    if scored:
        pair = pair.model_copy(update={"reward_given_up": MeanInterval(0.5, 0.4, 0.6, 64)})
    return judged(pair, tuned, sampled, complete=complete)


def test_five_rounds_of_whole_saturated_equal_levels_decide() -> None:
    found = judged_pair(side_of("vbon", TUNED), side_of("bon", SAMPLED))
    assert (found.state, found.reasons) == ("decided", [])


@pytest.mark.parametrize(
    ("tuned", "sampled", "complete", "reason"),
    [
        ({}, {}, False, "only part of the run was measured"),
        ({}, {"loads": (1, 8)}, True, "vbon and bon were measured at different load levels"),
        ({"rising": True}, {}, True, "vbon was not fully loaded"),
        ({}, {"rising": True}, True, "bon was not fully loaded"),
        ({"rates": TUNED[:4]}, {}, True, "4 of at least 5 rounds"),
        ({"rates": [60.0, 60, 60, 60, 100]}, {}, True, "by a factor of 1.67"),
        ({"rates": [11.0, 12, 13, 14, 15]}, {}, True, "break-even point differs"),
        ({"streamed": True}, {}, True, "one side was streamed and the other was not"),
        ({"adapter": True}, {}, True, "vbon was served as an unmerged adapter"),
        ({"searched": True}, {}, True, "search for the highest rate was finished for vbon only"),
        ({"loads": (1, 512)}, {"loads": (1, 8), "n": 16}, True, "at different load levels"),
        ({"loads": (1, 256, 512)}, {"loads": (1, 32), "n": 16}, True, "at different load levels"),
        ({}, {"rates": [10.0, 10, 10, 10, 10, 0]}, True, "bon answered nothing in 1 of 6 rounds"),
    ],
)
def test_each_flaw_alone_forbids_a_number(
    tuned: dict[str, Any], sampled: dict[str, Any], complete: bool, reason: str
) -> None:
    rates = {"vbon": tuned.pop("rates", TUNED), "bon": sampled.pop("rates", SAMPLED)}
    if len(rates["bon"]) == 6:
        rates["vbon"] = [*TUNED, 102.0]
    sides = side_of("vbon", rates["vbon"], **tuned), side_of("bon", rates["bon"], **sampled)
    found = judged_pair(*sides, complete=complete)
    assert found.state == "preliminary"
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]
    first = decision(found)[0]
    assert first.startswith("Preliminary, so without a number: vbon against bon (N=4): ")
    assert "Fine-tune" not in " ".join(decision(found))


def test_equal_sequences_and_searched_rates_are_equal_loads() -> None:
    """256 single samples are 16 requests of best-of-16, and about 37 of best-of-7."""
    tuned = side_of("vbon", TUNED, (1, 256, 512))
    for n, loads in ((16, (1, 16, 32)), (7, (1, 37, 73))):
        found = judged_pair(tuned, side_of("bon", SAMPLED, loads, n=n))
        assert (found.state, found.reasons) == ("decided", [])
    searched = [
        side_of(name, rates, loads=(rates[0],), searched=True)
        for name, rates in (("vbon", TUNED), ("bon", SAMPLED))
    ]
    assert judged_pair(*searched).state == "decided"
    unmeasured = side_of("bon", SAMPLED, searched=True)
    unmeasured = replace(
        unmeasured,
        measured=replace(unmeasured.measured, capacity=replace(unmeasured.capacity, by_round={})),
    )
    assert judged_pair(searched[0], unmeasured).reasons == [
        "0 of at least 5 rounds compare the two (--rounds)"
    ]


def test_rewards_of_few_prompts_decide_nothing() -> None:
    """Rewards of one prompt have an interval without width, which looks certain and is not."""
    tuned, sampled = side_of("vbon", TUNED), side_of("bon", SAMPLED)
    pair = compared(tuned.capacity, sampled.capacity)
    one = pair.model_copy(update={"reward_given_up": MeanInterval(0.5, 0.5, 0.5, 1)})
    found = judged(one, tuned, sampled, complete=True)
    assert found.state == "preliminary"
    assert found.reasons == [
        "rewards were measured on 1 of at least 10 prompts (--prompts, --quality-prompts)"
    ]


def test_without_rewards_nothing_is_measured() -> None:
    found = judged_pair(side_of("vbon", TUNED), side_of("bon", SAMPLED), scored=False)
    assert found.state == "not measured"
    assert decision(found)[0] == (
        "Not measured: vbon against bon (N=4): their rewards were not measured on the same prompts."
    )


# Advice


def decision(pair: BreakEven) -> list[str]:
    prices = {"vbon": pair.tuned_per_1000, "bon (N=4)": pair.sampled_per_1000}
    costs = [
        VariantCost(
            variant=name,
            source="at 32 in flight",
            requests_per_s=median_range([1000.0 / found.median if found else 1.0]),
            per_1000=found.median if found else 1.0,
            low=0,
            high=0,
        )
        for name, found in prices.items()
    ]
    return decide([pair], costs, [], [], [], "EUR")


def traded(tuned_rate: float, sampled_rate: float, given_up: tuple[float, float, float]) -> str:
    pair = compared(capacity_of_rounds([tuned_rate] * 5), capacity_of_rounds([sampled_rate] * 5))
    reward = MeanInterval(*given_up, 8)
    return " ".join(
        decision(pair.model_copy(update={"state": "decided", "reward_given_up": reward}))
    )


def test_more_reward_for_more_money_is_a_trade_with_its_price() -> None:
    """1,000 answers cost .14 against .1; the .04 more buy 1.37 of reward: .0292 a unit."""
    text = traded(1 / 0.14, 10, (-1.37, -1.5, -1.2))
    assert text.startswith(
        "A trade: vbon costs 1.4 times as much as bon (N=4) and is better: 0.0292 EUR per 1,000 answers for "
        "each unit of reward (1.37 here)."
    )
    assert "saves nothing" not in text


def test_less_reward_for_less_money_is_a_trade_with_its_price() -> None:
    """1,000 answers cost .01 against .1: .09 saved for .5 of reward; 1 pays after 1 / .00009 answers."""
    text = traded(100, 10, (0.5, 0.4, 0.6))
    assert text.startswith(
        "Fine-tune (vbon) if you will serve more than 11,100 answers and accept less"
    )
    assert "0.18 EUR per 1,000 answers for each unit of reward (0.5 here)" in text


def test_the_dominated_one_is_not_advised() -> None:
    assert traded(10, 10, (0.5, 0.4, 0.6)).startswith(
        "Keep bon (N=4): it has more reward than vbon"
    )
    assert ": it has more reward than bon (N=4) and is then cheaper too." in traded(
        100, 10, (-0.5, -0.6, -0.4)
    )


def test_an_interval_across_zero_is_no_equality() -> None:
    text = traded(100, 10, (0.02, -0.63, 0.67))
    assert (
        "Reward of vbon: between 0.67 worse and 0.63 better than bon (N=4) (8 prompts): too close to call"
        in text
    )
    assert "no measurable difference" not in text
    pair = compared(capacity_of_rounds([100.0]), capacity_of_rounds([10.0])).model_copy(
        update={
            "reward_given_up": MeanInterval(0.02, -0.63, 0.67, 8),
            "win_rate_tuned": MeanInterval(0.85, 0.82, 0.88, 64),
            "win_rate_sampled": MeanInterval(0.94, 0.92, 0.96, 64),
        }
    )
    assert "instead of 0.94 [0.92, 0.96], by which vbon is worse." in reward_words(pair)


# Equal reward


def equal_pair(reward: float, tuned_rate: float, *, single_rate: float | None) -> BreakEven:
    """Best of 1, 2, 3, 4 have rewards 0, 1, 1.5 and 1.75 on each of five prompts."""
    rows = [ScoredAnswer(prompt=p, sample=0, reward=reward) for p in range(5)]
    quality = quality_of(Variant("vbon"), rows, None)
    best = [ScoredAnswer(prompt=p, sample=0, reward=1.75) for p in range(5)]
    capacities = [capacity_of_rounds([rate] * 5) for rate in (tuned_rate, 10.0, single_rate or 1.0)]
    found = break_even(
        MeasuredVariant("vbon", capacities[0], quality),
        MeasuredVariant("bon (N=4)", capacities[1], quality_of(Variant("bon"), best, None), n=4),
        TrainingExpense(1.0, 1.0, "by hand"),
        (list(range(5)), np.tile([0.0, 1.0, 1.5, 1.75], (5, 1))),
        3.6,
        None if single_rate is None else MeasuredVariant("ref", capacities[2], None),
    )
    return found.model_copy(update={"state": "decided"})


def test_the_price_at_equal_reward_leads() -> None:
    """A reward of 1.25 is best-of-2.5's. One sample costs 1/40 of a unit, best-of-4 1/10.

    Half of the way between them costs 1/16, which is 2.5 times 1/40; the training of 1 unit (0.001 units an
    answer at 1/s) pays after 1 / (0.001 (1/16 - 1/40)) answers.
    """
    pair = equal_pair(1.25, 40.0, single_rate=40.0)
    assert pair.equal_n == 2.5
    assert pair.equal_cost_ratio is not None
    assert pair.equal_cost_ratio.median == pytest.approx(2.5)
    assert pair.equal_requests == pytest.approx(1 / (0.001 * (1 / 16 - 1 / 40)))
    lines = decision(pair)
    assert lines[0].startswith(
        "At equal reward, fine-tune (vbon) if you will serve more than 26,700 answers (26,700 to 26,700): "
        "vbon has the reward of best-of-2.5 [2.5, 2.5], whose answer costs 2.5 times"
    )
    assert lines[1].startswith(
        "Fine-tune (vbon) if you will serve more than 13,300 answers and accept"
    )


def test_a_checkpoint_of_little_reward_saves_nothing_at_equal_reward() -> None:
    """A reward of .3 is best-of-1.3's: in proportion it costs 1.3/40 of a unit, the checkpoint 1/30."""
    pair = equal_pair(0.3, 30.0, single_rate=None)
    assert pair.equal_cost_ratio is not None
    assert pair.equal_cost_ratio.median == pytest.approx(30 * 1.3 / 40)
    assert decision(pair)[0].startswith(
        "At equal reward, vbon saves nothing: vbon has the reward of"
    )
    assert pair.requests is not None  # against best-of-4 it would pay


def test_a_reward_outside_the_curve_has_no_equal_price() -> None:
    for reward in (-1.0, 2.0):
        assert equal_pair(reward, 40.0, single_rate=40.0).equal_cost_ratio is None
