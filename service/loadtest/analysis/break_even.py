"""Computes when a fine-tune pays for itself, and the reward it gives up.

The cost per answer is price per hour / 3600 / answers per second. The fine-tune has paid for itself after
``training cost / (cost per sampled answer - cost per tuned answer)`` answers. Every point and its range are
from the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import comb
from typing import Any

import numpy as np

from service.loadtest.analysis.equal_n import EqualN, equal_n
from service.loadtest.analysis.intervals import Float, interval
from service.loadtest.config import LoadTestSettings
from service.loadtest.schema import (
    BreakEven,
    CellResult,
    Quality,
    Saturation,
    ServedMode,
    VariantCost,
)
from vbon.maths.intervals import MeanInterval, MedianRange
from vbon.maths.statistics import median_range

_SECONDS_PER_HOUR = 3600.0
_OUTSIDE = 2 * 0.5**5  # probability that the smallest and the largest of five miss the median
RISING = 1.1  # factor over the next lower level that is more than rounds differ by chance


def cost_per_answer(price_per_hour: float, answers_per_s: float) -> float:
    """The cost per answer in the unit of the price; infinite if the throughput is 0."""
    if answers_per_s <= 0:
        return float("inf")
    return price_per_hour / _SECONDS_PER_HOUR / answers_per_s


def answers_to_break_even(training: float, sampled: float, tuned: float) -> float | None:
    """The answers after which the training has paid; ``None`` if a tuned answer saves nothing."""
    saved = sampled - tuned
    return training / saved if saved > 0 else None


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest throughput of a variant.

    Attributes:
        source: the load level at which it was measured, in words.
        by_round: answers per second by round.
        rising: True if the level is the highest tried and clearly better than all lower ones.
        searched: True if it is the rate that a saturation search confirmed.
        above: for a searched rate, the lowest rate that failed, as a multiple of it; 1 if none failed.
    """

    source: str
    requests_per_s: MedianRange
    by_round: Mapping[int, float]
    rising: bool = False
    searched: bool = False
    above: float = 1.0


def capacity_of(
    variant: str,
    cells: Sequence[CellResult],
    saturation: Sequence[Saturation],
    full: int | None = None,
) -> Capacity | None:
    """The confirmed saturation rate if there is one, else the level with the most answers per second.

    If SLOs are set, only answers within them count. ``None`` if nothing was answered.

    Args:
        full: candidates that the server runs at once, at most; more of them only wait.
    """
    for found in saturation:
        if found.variant == variant and found.rate is not None and found.confirmed:
            return _searched_capacity(found, found.rate, cells)
    own = [cell for cell in cells if cell.variant == variant]
    rated = [(cell.goodput_per_s or cell.requests_per_s, cell) for cell in own]
    usable = [(rate, cell) for rate, cell in rated if rate.median > 0]
    if not usable:
        return None
    rate, best = max(usable, key=lambda pair: pair[0].median)
    unit = "in flight" if best.load_kind == "closed" else "requests/s"
    good = "within the SLOs at " if best.goodput_per_s is not None else "at "
    by_round = {
        one.round: one.requests_per_s if one.goodput_per_s is None else one.goodput_per_s
        for one in best.rounds
    }
    rising = _rising(best, rate, usable, full)
    return Capacity(f"{good}{best.load:g} {unit}", rate, by_round, rising)


def _searched_capacity(found: Saturation, rate: float, cells: Sequence[CellResult]) -> Capacity:
    """The confirmed rate, times the share of answers within the SLOs in each round that repeated it."""
    above = found.above / rate if found.above is not None else 1.0
    by_round = {
        one.round: rate * one.goodput_share
        for cell in cells
        if cell.variant == found.variant and cell.load_kind == "open" and cell.load == rate
        for one in cell.rounds
        if one.goodput_share is not None
    }
    shown = median_range(list(by_round.values()) or [rate])
    return Capacity(
        f"within the SLOs at {rate:.3g} requests/s, the highest rate with p95 E2E within "
        f"{found.slo_ms:g} ms",
        MedianRange(shown.median, shown.low, shown.high * above, shown.count),
        by_round,
        searched=True,
        above=above,
    )


def _rising(
    best: CellResult,
    rate: MedianRange,
    usable: Sequence[tuple[MedianRange, CellResult]],
    full: int | None,
) -> bool:
    """True if the best level is the highest, and all lower levels of its kind are clearly below it.

    If a lower level already fills the server, a difference between them is noise.
    """
    closed = [cell for _, cell in usable if cell.load_kind == "closed" == best.load_kind]
    if full is not None and any(full <= cell.load * cell.n < best.load * best.n for cell in closed):
        return False
    others = [
        (other, cell)
        for other, cell in usable
        if cell.load_kind == best.load_kind and cell is not best
    ]
    return all(
        cell.load < best.load and other.median < rate.median / RISING for other, cell in others
    )


def cost_of(variant: str, capacity: Capacity, price_per_hour: float) -> VariantCost:
    """The price of 1,000 answers, as the median and the range of the rounds that had an answer."""
    rate = capacity.requests_per_s
    rates = list(capacity.by_round.values()) or [rate.median]
    prices = [1000 * cost_per_answer(price_per_hour, one) for one in rates if one > 0]
    if not prices:
        prices = [1000 * cost_per_answer(price_per_hour, rate.median)]
    return VariantCost(
        variant=variant,
        source=capacity.source,
        requests_per_s=rate,
        per_1000=float(np.median(prices)),
        low=min(prices) / capacity.above,
        high=max(prices),
        rising=capacity.rising,
    )


@dataclass(frozen=True, slots=True)
class TrainingExpense:
    """The device hours and the cost of a training; ``None`` if they are unknown."""

    hours: float | None
    cost: float | None
    source: str


def training_of(mode: ServedMode, settings: LoadTestSettings) -> TrainingExpense:
    """The training's cost from the settings, or else from the checkpoint's training record."""
    price = settings.training_price_per_hour or settings.price_per_hour
    if settings.training_hours is not None:
        return TrainingExpense(
            settings.training_hours, settings.training_hours * price, "--training-hours"
        )
    record = mode.training
    if record is None or record.cost is None:
        return TrainingExpense(
            None, None, "the checkpoint has no training record; give --training-hours"
        )
    hours = record.cost.device_hours
    parts = (
        f"training record: {record.cost.training_seconds:g} s x {record.cost.processes} of training"
    )
    cache = record.cache
    if cache is None or cache.sampling_seconds is None:
        count = "the" if cache is None else f"{cache.total:,}"
        source = f"{parts}; without {count} cached samples, whose time it does not tell"
        return TrainingExpense(hours, hours * price, source)
    hours += cache.sampling_seconds / _SECONDS_PER_HOUR
    source = f"{parts} and {cache.sampling_seconds:g} s of {cache.total:,} cached samples"
    return TrainingExpense(hours, hours * price, source)


@dataclass(frozen=True, slots=True)
class MeasuredVariant:
    """A variant with its capacity and, if it was scored, its quality; ``n`` is its number of candidates."""

    variant: str
    capacity: Capacity
    quality: Quality | None
    n: int = 1


@dataclass(frozen=True, slots=True)
class PairedPrices:
    """Prices of one answer of both variants, round by round, from the same rounds.

    The point is always computed from these rounds too: with the medians of other rounds it could lie
    outside its own range. A price is infinite if a round had no tuned answer.

    Attributes:
        rounds: the rounds themselves; empty if the prices are not of rounds.
        tuned_above: by how much the true rate may exceed a searched one, as a factor; else 1.
        sampled_above: the same of the sampled variant.
    """

    tuned: Float
    sampled: Float
    rounds: tuple[int, ...]
    tuned_above: float = 1.0
    sampled_above: float = 1.0

    @property
    def ratio(self) -> MedianRange:
        """The ratio of the median prices with its range over rounds."""
        point = float(np.median(self.sampled) / np.median(self.tuned))
        low, high = self.ends(lambda tuned, sampled: sampled / tuned)
        return _enclosing(point, low, high, len(self.tuned))

    def ends(self, figure: Callable[[Float, Float], Float]) -> tuple[float, float]:
        """The ends of the range of a figure of each round's prices, widened by a search's bracket.

        Args:
            figure: computes the figure of every round from the tuned and the sampled prices.
        """
        brackets = ((1.0, 1.0), (self.tuned_above, 1.0), (1.0, self.sampled_above))
        found = [
            median_ends(figure(self.tuned / own, self.sampled / other)) for own, other in brackets
        ]
        return min(low for low, _ in found), max(high for _, high in found)


def median_ends(values: Float) -> tuple[float, float]:
    """Two of the values that enclose the true median with a probability of about 94% or more.

    The smallest and the largest of five do (93.75%); of more values, the k-th from either end do, with the
    largest k that misses it no more often (binomial distribution). So further rounds narrow a range.
    """
    ordered = np.sort(values)
    k = left_out(len(ordered))
    return float(ordered[k]), float(ordered[-1 - k])


@cache
def left_out(count: int) -> int:
    """The number of so many rounds that :func:`median_ends` leaves out at each end."""
    k, outside = 1, 2.0 ** (1 - count)
    while 2 * (k + 1) <= count:
        outside += 2 * comb(count, k) * 0.5**count
        if outside > _OUTSIDE:
            break
        k += 1
    return k - 1


def _enclosing(point: float, low: float, high: float, count: int) -> MedianRange:
    """The point with its range; rounding errors never leave it outside."""
    return MedianRange(point, min(point, low), max(point, high), count)


def paired_prices(tuned: Capacity, sampled: Capacity, price_per_hour: float) -> PairedPrices:
    """The prices of an answer in the rounds that both variants have.

    A round without sampled answers has no ratio, so it is left out of the point and of the range. In one
    without tuned answers the fine-tune never pays. Without a common round, the ends of both ranges are
    crossed; a verdict then gives no number.
    """
    both = sorted(tuned.by_round.keys() & sampled.by_round.keys())
    rounds = tuple(r for r in both if sampled.by_round[r] > 0)
    if rounds:
        tuned_rates = [tuned.by_round[r] for r in rounds]
        sampled_rates = [sampled.by_round[r] for r in rounds]
    else:
        ends = [(one.median, one.low, one.high) for one in (_ends(tuned), _ends(sampled))]
        # The median price of three is the middle one, and the extremes are crossed.
        tuned_rates = [ends[0][i] for i in (0, 1, 2)]
        sampled_rates = [ends[1][i] for i in (0, 2, 1)]
    costs = [
        np.array([cost_per_answer(price_per_hour, rate) for rate in rates])
        for rates in (tuned_rates, sampled_rates)
    ]
    return PairedPrices(costs[0], costs[1], rounds, tuned.above, sampled.above)


def _ends(capacity: Capacity) -> MedianRange:
    """The range of a capacity without the rounds that answered nothing."""
    rate = capacity.requests_per_s
    return MedianRange(
        rate.median, rate.low if rate.low > 0 else rate.median, rate.high, rate.count
    )


def break_even(
    tuned: MeasuredVariant,
    sampled: MeasuredVariant,
    training: TrainingExpense,
    curve: tuple[list[int], Float],
    price: float,
    single: MeasuredVariant | None = None,
) -> BreakEven:
    """Compare a tuned variant with one that samples several candidates.

    Args:
        curve: prompts and their expected best of 1..N, from ``quality.curve_matrix``; may be empty.
        price: price of the serving hardware per hour.
        single: one sample of the policy that ``sampled`` draws from, if it was measured.
    """
    prices = paired_prices(tuned.capacity, sampled.capacity, price)
    needed = _paid_after(training.cost, prices)
    equal = _equal(tuned.quality, curve)
    known = (
        {} if equal is None else _at_equal_reward(tuned, sampled, single, training, equal, price)
    )
    return BreakEven(
        tuned=tuned.variant,
        sampled=sampled.variant,
        training_hours=training.hours,
        training_cost=training.cost,
        training_source=training.source,
        cost_ratio=prices.ratio,
        requests=needed.point,
        requests_low=needed.low,
        requests_high=needed.high,
        reward_given_up=_given_up(tuned.quality, sampled.quality),
        win_rate_tuned=None if tuned.quality is None else tuned.quality.win_rate,
        win_rate_sampled=None if sampled.quality is None else sampled.quality.win_rate,
        equal_n=None if equal is None else equal.n,
        equal_n_low=None if equal is None else equal.low,
        equal_n_high=None if equal is None else equal.high,
        equal_n_beyond=equal is not None and equal.beyond,
        equal_n_low_open=equal is not None and equal.low_open,
        equal_n_high_open=equal is not None and equal.high_open,
        tuned_per_1000=_per_1000(prices.tuned),
        sampled_per_1000=_per_1000(prices.sampled),
        **known,
    )


def _per_1000(costs: Float) -> MedianRange | None:
    return median_range(1000 * costs) if np.isfinite(costs).all() else None


@dataclass(frozen=True, slots=True)
class PaidAfter:
    """Answers until the training has paid; an end of the range is ``None`` if it never pays there."""

    point: float | None = None
    low: float | None = None
    high: float | None = None


def _paid_after(training: float | None, prices: PairedPrices) -> PaidAfter:
    """The answers to break-even from prices by round, the point from their medians."""
    if training is None:
        return PaidAfter()
    point = answers_to_break_even(
        training, float(np.median(prices.sampled)), float(np.median(prices.tuned))
    )
    if point is None:
        return PaidAfter()

    def needed(tuned: Float, sampled: Float) -> Float:
        saved = sampled - tuned
        return np.where(saved > 0, training / np.where(saved > 0, saved, 1.0), np.inf)

    around = _enclosing(point, *prices.ends(needed), len(prices.tuned))
    return PaidAfter(point, around.low, None if np.isinf(around.high) else around.high)


def _at_equal_reward(
    tuned: MeasuredVariant,
    sampled: MeasuredVariant,
    single: MeasuredVariant | None,
    training: TrainingExpense,
    equal: EqualN,
    price: float,
) -> dict[str, Any]:
    """The fields of the comparison with best-of-n at the tuned variant's reward; empty if there is none.

    A coin between two whole n has every reward between theirs, and its cost is linear in n. Between one
    sample and best-of-N the cost is interpolated if both were measured in the same rounds; otherwise it is
    taken in proportion to n, which favours best-of-n.
    """
    if equal.beyond or sampled.n < 2 or equal.n > sampled.n:
        return {}
    prices = paired_prices(tuned.capacity, sampled.capacity, price)
    ones = None if single is None else paired_prices(single.capacity, sampled.capacity, price)
    usable = ones is not None and prices.rounds and ones.rounds == prices.rounds
    usable = usable and ones is not None and not (single is None or single.capacity.rising)
    one = ones.tuned if usable and ones is not None else prices.sampled / sampled.n
    if not np.isfinite(one).all():
        one, usable = prices.sampled / sampled.n, False

    def cost(n: float) -> Float:
        return one + (n - 1) / (sampled.n - 1) * (prices.sampled - one)

    ends = [replace(prices, sampled=cost(n)) for n in (equal.low, equal.high)]
    at_point = replace(prices, sampled=cost(equal.n))
    ratios = [one.ratio for one in (at_point, *ends)]
    point, low, high = ratios[0].median, min(r.low for r in ratios), max(r.high for r in ratios)
    needed = _paid_after(training.cost, at_point)
    outer = [_paid_after(training.cost, end) for end in ends]
    lows = [one.low for one in (needed, *outer) if one.low is not None]
    highs = [one.high for one in (needed, *outer) if one.high is not None]
    return {
        "equal_cost_ratio": MedianRange(point, low, high, len(prices.tuned)),
        "equal_cost_source": f"between one sample and best-of-{sampled.n}"
        if usable
        else f"in proportion to n from best-of-{sampled.n}",
        "equal_requests": needed.point,
        "equal_requests_low": min(lows) if lows and needed.point is not None else None,
        "equal_requests_high": max(highs) if len(highs) == 3 else None,
    }


def _given_up(tuned: Quality | None, sampled: Quality | None) -> MeanInterval | None:
    if tuned is None or sampled is None:
        return None
    shared = tuned.prompt_rewards.keys() & sampled.prompt_rewards.keys()
    return interval(
        [sampled.prompt_rewards[p] - tuned.prompt_rewards[p] for p in sorted(shared, key=int)]
    )


def _equal(tuned: Quality | None, curve: tuple[list[int], Float]) -> EqualN | None:
    prompts, matrix = curve
    if tuned is None or not prompts:
        return None
    rows = [i for i, prompt in enumerate(prompts) if str(prompt) in tuned.prompt_rewards]
    if not rows:
        return None
    values = np.array([tuned.prompt_rewards[str(prompts[i])] for i in rows])
    return equal_n(matrix[rows], values)
