"""The choice among measured settings, against enumeration, and on held-out prompts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from service.auto.choice import Choice, Option, Prices, choose, option_of, unpriced
from service.runtime.routing import Budget
from tests.unit.measured import around, row
from vbon.errors import InvalidInputError
from vbon.maths.statistics import bootstrap_mean
from vbon.measured.table import MeasuredSetting

# Eight settings whose gains, tokens and latencies are not ordered alike: n, reward, half width, tokens, s,
# 95th percentile.
FIGURES = (
    (1, 0.0, 0.1, 40, 0.20, 0.4), (2, 0.5, 0.3, 80, 0.25, 0.9), (3, 0.6, 0.05, 120, 0.6, 0.7),
    (4, 0.9, 0.1, 160, 0.5, 1.0), (6, 1.1, 0.4, 240, 0.5, 1.4), (8, 1.2, 0.1, 320, 0.9, 1.5),
    (16, 1.3, 0.1, 640, 1.5, 3.0), (32, 1.25, 0.1, 1280, 3.0, 6.0),
)  # fmt: skip


def rows() -> list[MeasuredSetting]:
    return [
        row(
            n=n, reward=around(reward, half), generated_tokens=around(tokens, 4),
            latency_mean_s=around(seconds, 0.05), latency_p95_s=around(p95, 0.1),
        )
        for n, reward, half, tokens, seconds, p95 in FIGURES
    ]  # fmt: skip


def options(prices: Prices, **changes: Any) -> list[Option]:
    return [option_of(one, prices, concurrency=8, **changes) for one in rows()]


def chosen(prices: Prices, budget: Budget | None = None) -> Choice:
    return choose(options(prices), prices, budget)


GRID = [
    Prices(token=token, latency=latency, p95_s=p95)
    for token in (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 0.1)
    for latency in (0.0, 0.1, 0.5, 2.0, 10.0)
    for p95 in (None, 0.6, 1.2, 4.0)
]


def allowed(prices: Prices) -> list[tuple[float, ...]]:
    """The figures of the settings within the limit of latency, whose interval is 0.1 wide at each side."""
    return [one for one in FIGURES if prices.p95_s is None or one[5] + 0.1 <= prices.p95_s]


def test_the_choice_is_the_argmax_at_every_price() -> None:
    for prices in GRID:
        values = {
            one[0]: one[1] - prices.token * one[3] - prices.latency * one[4]
            for one in allowed(prices)
        }
        best = max(values.values())
        found = chosen(prices)
        assert values[found.option.row.n] == pytest.approx(best, abs=1e-12), prices
        assert found.option.value == pytest.approx(best, abs=1e-12)
        assert found.met is None
        assert str(len(values)) in found.why


def test_every_price_has_its_own_choice_and_free_tokens_buy_the_highest_reward() -> None:
    assert chosen(Prices()).option.row.n == 16
    assert {chosen(one).option.row.n for one in GRID} >= {1, 2, 4, 8, 16}


@pytest.mark.parametrize("amount", [44, 84, 200, 324, 1000, 5000])
def test_a_budget_of_tokens_is_kept_by_the_upper_end(amount: int) -> None:
    for prices in GRID:
        within = [one for one in allowed(prices) if one[3] + 4 <= amount]
        assert within, "each limit of latency leaves the cheapest setting"
        found = chosen(prices, Budget("tokens", amount))
        values = [one[1] - prices.token * one[3] - prices.latency * one[4] for one in within]
        assert found.met is True
        assert found.option.most_tokens <= amount
        assert found.option.value == pytest.approx(max(values), abs=1e-12), prices


def test_a_budget_of_tokens_below_every_setting_is_refused_with_the_least() -> None:
    with pytest.raises(
        InvalidInputError, match="needs up to 44 tokens an answer, and the budget is 43"
    ) as no:
        chosen(Prices(), Budget("tokens", 43))
    assert no.value.field == "budget.tokens"


@pytest.mark.parametrize("amount", [-0.2, 0.0, 0.5, 0.71, 1.0, 1.15, 1.21, 9.0])
def test_a_least_reward_is_met_by_the_lower_end_at_the_least_price(amount: float) -> None:
    for prices in GRID:
        known = allowed(prices)
        enough = [one for one in known if one[1] - one[2] >= amount]
        found = chosen(prices, Budget("reward", amount))
        if not enough:
            assert found.met is False
            assert found.option.gain.mean == max(one[1] for one in known)
            assert "no setting" in found.why.lower()
            continue
        price = {one[0]: prices.token * one[3] + prices.latency * one[4] for one in enough}
        assert found.met is True
        assert found.option.gain.low >= amount
        least = min(price.values())
        assert price[found.option.row.n] == pytest.approx(least, abs=1e-12), prices
        if not prices.token and not prices.latency:  # then tokens decide
            assert found.option.tokens == min(one[3] for one in enough)


def test_money_is_the_share_of_the_server_and_the_price_of_tokens() -> None:
    """8 in flight for 0.9 s each hold an eighth of the server: at 3.6 an hour, 0.9 / 8 / 1000 each."""
    hourly, by_token = Prices(hour=3.6), Prices(million_tokens=10.0)
    both = Prices(hour=3.6, million_tokens=10.0)
    eight = [one[0] for one in FIGURES].index(8)
    assert options(hourly)[eight].money == pytest.approx(0.9 / 8 / 1000)
    assert options(hourly)[eight].most_money == pytest.approx(0.95 / 8 / 1000)
    assert options(by_token)[eight].money == pytest.approx(0.0032)
    assert options(both)[eight].most_money == pytest.approx(0.95 / 8 / 1000 + 0.00324)
    assert options(Prices())[eight].money is None
    found = choose(options(both), both, Budget("money", 0.0034))
    assert found.option.row.n == 8
    with pytest.raises(InvalidInputError, match="needs up to") as refused:
        choose(options(both), both, Budget("money", 1e-9))
    assert refused.value.field == "budget.money"
    with pytest.raises(InvalidInputError, match=r"--auto\.price-per-hour"):
        chosen(Prices(), Budget("money", 1.0))


def test_where_no_setting_is_fast_enough_the_fastest_answers_and_says_so() -> None:
    prices = Prices(p95_s=0.1)
    found = chosen(prices)
    assert (found.option.row.n, found.met) == (1, None)
    assert "No setting answers 95% within 0.1 s" in found.why
    assert chosen(prices, Budget("reward", 0.5)).met is False
    assert chosen(prices, Budget("tokens", 50)).met is True
    # A budget of tokens or money is kept all the same: here the fastest costs more than it.
    dear = row(n=2, generated_tokens=around(900, 4), latency_p95_s=around(0.2, 0))
    slow = row(n=4, generated_tokens=around(100, 4), latency_p95_s=around(0.9, 0))
    both = [option_of(one, prices, concurrency=8) for one in (dear, slow)]
    assert choose(both, prices).option.row is dear
    found = choose(both, prices, Budget("tokens", 200))
    assert (found.option.row, found.met) == (slow, True)
    with pytest.raises(InvalidInputError, match="needs up to 104 tokens"):
        choose(both, prices, Budget("tokens", 50))
    with pytest.raises(InvalidInputError, match="no prices of money"):
        choose(both, prices, Budget("money", 1.0))
    unknown = [
        option_of(one.model_copy(update={"latency_p95_s": None}), prices, concurrency=8)
        for one in rows()
    ]
    assert "unknown" in choose(unknown, prices).why


def test_other_limits_of_tokens_bound_the_tokens_from_above() -> None:
    """E min(L, T') for T' above and below the measured T, enumerated over all lengths."""
    prices, measured = Prices(), 6
    for lengths in itertools.product((1, 4, 9, 14), repeat=2):
        mean = float(np.mean([min(one, measured) for one in lengths]))
        one = row(n=2, max_tokens=measured, generated_tokens=around(2 * mean, 0))
        for limit in (1, 3, 6, 8, 12, 20):
            found = option_of(one, prices, concurrency=8, most_candidates=2, max_tokens=limit)
            true = 2 * float(np.mean([min(length, limit) for length in lengths]))
            assert found.most_tokens >= true - 1e-9
            assert found.most_tokens <= 2 * limit
    assert option_of(one, prices, concurrency=8, samples=3).tokens == 3 * one.generated_tokens.mean


def test_what_a_table_lacks_is_said() -> None:
    assert unpriced(row(), Prices()) is None
    assert unpriced(row(reward=None), Prices()) == "It has no measured reward."
    assert unpriced(row(), Prices(gain="gold")) == "It has no measured gold reward."
    assert unpriced(row(latency_mean_s=None), Prices()) is None
    without = "It has no measured latency, which this server prices."
    assert unpriced(row(latency_mean_s=None), Prices(latency=0.1)) == without
    by_gold = option_of(row(gold=around(7.0)), Prices(gain="gold", token=0.01), concurrency=8)
    assert by_gold.value == pytest.approx(7.0 - 1.6)


def test_equal_values_go_to_fewer_tokens() -> None:
    prices = Prices()
    pair = [option_of(row(n=n), prices, concurrency=8) for n in (8, 2, 4)]
    assert choose(pair, prices).option.row.n == 2


# -- held-out prompts


def drawn(rng: np.random.Generator, prompts: int) -> dict[int, np.ndarray[Any, Any]]:
    """Rewards of best-of-n by n of the same prompts, whose means differ by as much as samples do."""
    difficulty = rng.normal(size=(prompts, 1))
    samples = difficulty + rng.normal(size=(prompts, 16))
    return {n: samples[:, :n].max(axis=1) for n in (1, 2, 3, 4, 6, 8, 12, 16)}


@pytest.mark.parametrize("token", [0.0, 1e-3, 5e-3])
def test_no_fixed_setting_is_better_on_held_out_prompts_beyond_its_interval(token: float) -> None:
    """The choice of a table of 200 prompts beside the best fixed setting of 200 others, in hindsight, paired.

    The best of eight is chosen on the same held-out prompts, so even the truly best setting loses to it
    beyond its interval now and then: in 0, 4 and 4% of 600 tables at these prices. Of 30, more than 5
    have probability .002.
    """
    prices, cost = Prices(token=token), 40.0
    worse = sum(_loses(seed, prices, cost) for seed in range(30))
    assert worse <= 5


def _loses(seed: int, prices: Prices, cost: float) -> bool:
    rng = np.random.default_rng((seed, round(prices.token * 1e6)))
    tuning, heldout = drawn(rng, 200), drawn(rng, 200)
    known = [
        option_of(
            row(n=n, reward=around(float(rewards.mean())), generated_tokens=around(cost * n, 0)),
            prices,
            concurrency=8,
        )
        for n, rewards in tuning.items()
    ]
    own = choose(known, prices).option.row.n
    value = {n: rewards - prices.token * cost * n for n, rewards in heldout.items()}
    rival = max(value, key=lambda n: float(value[n].mean()))
    return rival != own and bootstrap_mean(value[rival] - value[own]).low > 0


def test_a_choice_by_a_wrong_table_would_be_found_out() -> None:
    """The check above fails for a choice of the costliest setting where tokens are dear."""
    rng = np.random.default_rng(0)
    value = {n: rewards - 0.05 * 40 * n for n, rewards in drawn(rng, 200).items()}
    assert bootstrap_mean(value[1] - value[16]).low > 0
    assert math.isfinite(float(value[1].mean()))
