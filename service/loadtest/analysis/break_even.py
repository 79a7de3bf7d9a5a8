"""Computes when a fine-tune pays for itself, the reward it gives up, and the N it is equal to.

The cost per answer is price per hour / 3600 / answers per second. The fine-tune has paid for itself after
``training cost / (cost per sampled answer - cost per tuned answer)`` answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.loadtest.analysis.intervals import Float, interval, resamples
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
class EqualN:
    """The N at which best-of-N has a given reward, interpolated linearly between integers.

    Attributes:
        beyond: True if the curve ends below the reward (``n`` is its end) or starts above it (``n`` is 1).
    """

    n: float
    low: float
    high: float
    beyond: bool


def equal_n(matrix: Float, tuned: Float) -> EqualN:
    """The N at which the mean best-of-n curve reaches the mean tuned reward, with a 95% interval.

    The interval is over prompts.

    Args:
        matrix: expected best of 1..N by prompt, shape ``(prompts, N)``.
        tuned: the tuned variant's mean reward on the same prompts, shape ``(prompts,)``.
    """
    point, beyond = crossing(matrix.mean(axis=0), float(tuned.mean()))
    picks = resamples(len(tuned))
    drawn = [crossing(matrix[p].mean(axis=0), float(tuned[p].mean()))[0] for p in picks[:1000]]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return EqualN(point, float(low), float(high), beyond)


def crossing(curve: Float, target: float) -> tuple[float, bool]:
    """The n at which a rising curve over 1..N reaches a target, and True if it is outside 1..N."""
    if target <= curve[0]:
        return 1.0, target < curve[0]
    if target > curve[-1]:
        return float(len(curve)), True
    above = int(np.argmax(curve >= target))
    step = curve[above] - curve[above - 1]
    return above + float((target - curve[above - 1]) / step), False


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest throughput of a variant.

    Attributes:
        source: the load level at which it was measured, in words.
        by_round: answers per second by round.
        rising: True if the level is the highest tried and clearly better than all lower ones.
    """

    source: str
    requests_per_s: MedianRange
    by_round: Mapping[int, float]
    rising: bool = False


def capacity_of(
    variant: str, cells: Sequence[CellResult], saturation: Sequence[Saturation]
) -> Capacity | None:
    """The confirmed saturation rate if there is one, else the level with the most answers per second.

    If SLOs are set, only answers within them count. ``None`` if nothing was answered.
    """
    for found in saturation:
        if found.variant == variant and found.rate is not None and found.confirmed:
            rate = MedianRange(
                median=found.rate, low=found.rate, high=found.above or found.rate, count=1
            )
            return Capacity(
                f"highest rate with p95 E2E within {found.slo_ms:g} ms", rate, {0: found.rate}
            )
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
    rising = _rising(best, rate, usable)
    return Capacity(f"{good}{best.load:g} {unit}", rate, by_round, rising)


def _rising(
    best: CellResult, rate: MedianRange, usable: Sequence[tuple[MedianRange, CellResult]]
) -> bool:
    """True if the best level is the highest, and all lower levels of its kind are clearly below it."""
    others = [
        (other, cell)
        for other, cell in usable
        if cell.load_kind == best.load_kind and cell is not best
    ]
    return all(
        cell.load < best.load and other.median < rate.median / RISING for other, cell in others
    )


def cost_of(variant: str, capacity: Capacity, price_per_hour: float) -> VariantCost:
    """The price of 1,000 answers with its range over rounds."""
    rate = capacity.requests_per_s
    lowest = min((value for value in capacity.by_round.values() if value > 0), default=rate.median)
    per_1000 = [
        1000 * cost_per_answer(price_per_hour, value)
        for value in (rate.median, rate.high, rate.low if rate.low > 0 else lowest)
    ]
    return VariantCost(
        variant=variant,
        source=capacity.source,
        requests_per_s=rate,
        per_1000=per_1000[0],
        low=per_1000[1],
        high=per_1000[2],
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
    cost = None if mode.training is None else mode.training.cost
    if cost is None:
        return TrainingExpense(
            None, None, "the checkpoint has no training record; give --training-hours"
        )
    hours = cost.device_hours
    source = (
        f"training record: {cost.training_seconds:g} s x {cost.processes}, without cached samples"
    )
    return TrainingExpense(hours, hours * price, source)


@dataclass(frozen=True, slots=True)
class MeasuredVariant:
    """A variant with its capacity and, if it was scored, its quality."""

    variant: str
    capacity: Capacity
    quality: Quality | None


def break_even(
    tuned: MeasuredVariant,
    sampled: MeasuredVariant,
    training: TrainingExpense,
    curve: tuple[list[int], Float],
    price: float,
) -> BreakEven:
    """Compare a tuned variant with one that samples several candidates.

    Args:
        curve: prompts and their expected best of 1..N, from ``quality.curve_matrix``; may be empty.
        price: price of the serving hardware per hour.
    """
    needed, ratios = [], []
    pairs = _paired(tuned.capacity, sampled.capacity)
    for tuned_rate, sampled_rate in pairs:
        costs = cost_per_answer(price, sampled_rate), cost_per_answer(price, tuned_rate)
        ratios.append(costs[0] / costs[1])
        if training.cost is not None:
            needed.append(answers_to_break_even(training.cost, *costs))
    finite = [value for value in needed[1:] if value is not None]
    given_up = _given_up(tuned.quality, sampled.quality)
    equal = _equal(tuned.quality, curve)
    range_known = bool(finite) and len(finite) == len(needed) - 1
    return BreakEven(
        tuned=tuned.variant,
        sampled=sampled.variant,
        training_hours=training.hours,
        training_cost=training.cost,
        training_source=training.source,
        cost_ratio=median_range(ratios[1:] or ratios),
        requests=needed[0] if needed else None,
        requests_low=min(finite) if range_known else None,
        requests_high=max(finite) if range_known else None,
        reward_given_up=given_up,
        win_rate_tuned=None if tuned.quality is None else tuned.quality.win_rate,
        win_rate_sampled=None if sampled.quality is None else sampled.quality.win_rate,
        equal_n=None if equal is None else equal.n,
        equal_n_low=None if equal is None else equal.low,
        equal_n_high=None if equal is None else equal.high,
        equal_n_beyond=equal is not None and equal.beyond,
    )


def _paired(tuned: Capacity, sampled: Capacity) -> list[tuple[float, float]]:
    """Pairs of both rates: the medians first, then those of each round that both have."""
    both = sorted(tuned.by_round.keys() & sampled.by_round.keys())
    rounds = [(tuned.by_round[r], sampled.by_round[r]) for r in both]
    medians = (tuned.requests_per_s.median, sampled.requests_per_s.median)
    # A round without sampled answers has no ratio; in one without tuned answers the fine-tune never pays.
    return [medians, *(pair for pair in rounds if pair[1] > 0)]


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
