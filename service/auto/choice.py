"""The choice among measured settings: the highest gain less prices, or the one that a budget asks for.

For a setting, ``value = gain - token_price * tokens - latency_price * seconds``, all means per answer.
Budgets and limits are held against the far end of the interval, so noise in a table does not promise too
much. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service.runtime.routing import Budget
from vbon.errors import InvalidInputError
from vbon.maths.intervals import MeanInterval
from vbon.measured.table import MeasuredSetting

_HOUR_S = 3600.0
_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Prices:
    """The server's prices and its limit of latency.

    Attributes:
        gain: the reward that is weighed.
        token: price of a generated token, in units of that reward.
        latency: price of a second, in units of that reward.
        p95_s: the highest 95th percentile of latency; ``None`` for no limit.
        hour: money for an hour of the server.
        million_tokens: money for a million generated tokens.
    """

    gain: Literal["reward", "gold"] = "reward"
    token: float = 0.0
    latency: float = 0.0
    p95_s: float | None = None
    hour: float | None = None
    million_tokens: float | None = None

    @property
    def word(self) -> str:
        """The name of the gain."""
        return "gold reward" if self.gain == "gold" else "reward"


@dataclass(frozen=True, slots=True)
class Option:
    """A measured setting with what an answer of a request gains and costs by it.

    Attributes:
        gain: the weighed reward.
        tokens: mean number of generated tokens.
        most_tokens: upper bound of that mean.
        seconds: mean latency; ``None`` if it was not measured.
        p95_s: upper end of the interval of the 95th percentile; ``None`` if it was not measured.
        money: mean price in money; ``None`` if the server has no prices of money, or latency is unknown.
        most_money: upper bound of that mean.
        price: of tokens and time, in units of the gain.
    """

    row: MeasuredSetting
    gain: MeanInterval
    tokens: float
    most_tokens: float
    seconds: float | None
    p95_s: float | None
    money: float | None
    most_money: float | None
    price: float

    @property
    def value(self) -> float:
        """The gain less the price."""
        return self.gain.mean - self.price


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen setting, why it was chosen, and whether it should meet the budget."""

    option: Option
    why: str
    met: bool | None = None


def unpriced(row: MeasuredSetting, prices: Prices) -> str | None:
    """The reason why a setting lacks a figure that is needed to choose it; ``None`` if it lacks none."""
    if row.gain(prices.gain) is None:
        return f"It has no measured {prices.word}."
    if row.latency_mean_s is None and prices.latency:
        return "It has no measured latency, which this server prices."
    return None


def option_of(
    row: MeasuredSetting,
    prices: Prices,
    *,
    concurrency: int | None,
    most_candidates: int | None = None,
    max_tokens: int | None = None,
    samples: int = 1,
) -> Option:
    """The gain and the costs of an answer by a setting that :func:`unpriced` does not exclude.

    With a larger ``max_tokens`` T' than the measured T, a mean of min(length, T) grows at most by T'/T, and
    with a smaller one it does not grow, nor beyond T' for each candidate.

    Args:
        concurrency: requests in flight while latency was measured.
        most_candidates: the most candidates that the setting draws.
        max_tokens: of the request; by default what was measured.
        samples: how many independent samples the request wants, for settings of one candidate.
    """
    gain = row.gain(prices.gain)
    assert gain is not None  # see unpriced
    max_tokens = row.max_tokens if max_tokens is None else max_tokens
    tokens = row.generated_tokens.mean * samples
    most = row.generated_tokens.high * samples * max(1.0, max_tokens / row.max_tokens)
    if most_candidates is not None:
        most = min(most, float(most_candidates * samples * max_tokens))
    latency, p95 = row.latency_mean_s, row.latency_p95_s
    price = prices.token * tokens
    if prices.latency:
        assert latency is not None  # see unpriced
        price += prices.latency * latency.mean
    return Option(
        row=row,
        gain=gain,
        tokens=tokens,
        most_tokens=most,
        seconds=None if latency is None else latency.mean,
        p95_s=None if p95 is None else p95.high,
        money=_money(prices, tokens, None if latency is None else latency.mean, concurrency),
        most_money=_money(prices, most, None if latency is None else latency.high, concurrency),
        price=price,
    )


def _money(
    prices: Prices, tokens: float, seconds: float | None, concurrency: int | None
) -> float | None:
    """The money for an answer. With C in flight, an answer holds 1/C of the server for its latency."""
    if prices.hour is None and prices.million_tokens is None:
        return None
    found = 0.0 if prices.million_tokens is None else prices.million_tokens * tokens / _MILLION
    if prices.hour is None:
        return found
    if seconds is None or concurrency is None:
        return None
    return found + prices.hour * seconds / concurrency / _HOUR_S


def choose(options: Sequence[Option], prices: Prices, budget: Budget | None = None) -> Choice:
    """Choose one of several settings, at least one.

    Raises:
        InvalidInputError: every setting costs more than the budget, or money has no price here.
    """
    in_time = [one for one in options if _is_in_time(one, prices)]
    if not in_time:
        return _fastest(options, prices, budget)
    if budget is None:
        return _best(in_time, prices)
    if budget.kind == "reward":
        return _cheapest(in_time, prices, budget)
    return _best_within(in_time, prices, budget)


def _is_in_time(one: Option, prices: Prices) -> bool:
    return prices.p95_s is None or (one.p95_s is not None and one.p95_s <= prices.p95_s)


def _by_value(one: Option) -> tuple[float, float]:
    return one.value, -one.tokens


def _best(options: Sequence[Option], prices: Prices) -> Choice:
    best = max(options, key=_by_value)
    return Choice(best, f"{_highest(best, prices)} of {_settings(len(options))}.")


def _highest(best: Option, prices: Prices) -> str:
    if not prices.token and not prices.latency:
        return f"It has the highest {prices.word}"
    return (
        f"It has the highest {prices.word} less prices, {best.gain.mean:.4g} - {best.price:.4g} = "
        f"{best.value:.4g},"
    )


def _cheapest(options: Sequence[Option], prices: Prices, budget: Budget) -> Choice:
    """The cheapest setting whose lower bound has the reward, or else the one with the highest reward."""
    enough = [one for one in options if one.gain.low >= budget.amount]
    if enough:
        found = min(enough, key=lambda one: (one.price, one.tokens, -one.gain.mean))
        why = (
            f"It is the cheapest of {_settings(len(enough))} whose {prices.word} is at least "
            f"{budget.amount:.4g} by the lower end of its interval."
        )
        return Choice(found, why, met=True)
    best = max(options, key=lambda one: (one.gain.mean, -one.price, -one.tokens))
    why = (
        f"The lower end of no setting's {prices.word} reaches {budget.amount:.4g}; this one has the highest, "
        f"{best.gain.mean:.4g} [{best.gain.low:.4g}, {best.gain.high:.4g}]."
    )
    return Choice(best, why, met=False)


def _best_within(options: Sequence[Option], prices: Prices, budget: Budget) -> Choice:
    """The highest value among the settings whose upper bound the budget covers."""
    within = _within(options, budget)
    best = max(within, key=_by_value)
    why = (
        f"{_highest(best, prices)} of {_settings(len(within))} that need at most {budget.amount:.4g} "
        f"{_unit(budget)} an answer by the upper end of their interval."
    )
    return Choice(best, why, met=True)


def _within(options: Sequence[Option], budget: Budget) -> list[Option]:
    """The settings whose upper bound a budget of tokens or money covers.

    Raises:
        InvalidInputError: there is none, or money has no price here.
    """
    costs = {id(one): _cost(one, budget) for one in options}
    known = {name: cost for name, cost in costs.items() if cost is not None}
    if not known:
        raise InvalidInputError(
            "this server has no prices of money, or its settings have no measured latency; start it with "
            "--auto.price-per-hour or --auto.price-per-million-tokens, or give the budget in tokens",
            field="budget.money",
        )
    least = min(known.values())
    if least > budget.amount:
        raise InvalidInputError(
            f"the cheapest measured setting needs up to {least:.4g} {_unit(budget)} an answer, and the "
            f"budget is {budget.amount:.4g}; raise the budget, lower max_tokens, or leave the budget out",
            field=f"budget.{budget.kind}",
        )
    return [one for one in options if known.get(id(one), float("inf")) <= budget.amount]


def _fastest(options: Sequence[Option], prices: Prices, budget: Budget | None) -> Choice:
    """The setting with the lowest 95th percentile, where none is within the limit, that the budget covers."""
    assert prices.p95_s is not None  # otherwise every setting is in time
    if budget is not None and budget.kind != "reward":
        options = _within(options, budget)
    fastest = min(
        options, key=lambda one: (one.p95_s is None, one.p95_s or 0.0, -one.value, one.tokens)
    )
    known = "unknown" if fastest.p95_s is None else f"up to {fastest.p95_s:.4g} s"
    why = (
        f"No setting answers 95% within {prices.p95_s:.4g} s; this is the fastest, whose 95th percentile is "
        f"{known}."
    )
    if budget is None:
        return Choice(fastest, why)
    return Choice(fastest, why, met=budget.kind != "reward" or fastest.gain.low >= budget.amount)


def _cost(one: Option, budget: Budget) -> float | None:
    return one.most_tokens if budget.kind == "tokens" else one.most_money


def _unit(budget: Budget) -> str:
    return "tokens" if budget.kind == "tokens" else "of money"


def _settings(count: int) -> str:
    return "1 setting" if count == 1 else f"{count} settings"
