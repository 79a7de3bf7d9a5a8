"""Puts the result into words: the decision first, then the reasons."""

from __future__ import annotations

from service.loadtest.analysis.text import duration, interval_text, number
from service.loadtest.schema import BreakEven, CellResult, Quality, Saturation, VariantCost


def decide(
    pairs: list[BreakEven],
    costs: list[VariantCost],
    quality: list[Quality],
    cells: list[CellResult],
    saturation: list[Saturation],
    currency: str,
) -> list[str]:
    """The conclusions in sentences; the first ones answer "N times inference or one fine-tune?"."""
    lines: list[str] = []
    by_variant = {cost.variant: cost for cost in costs}
    # The largest N comes first, because it is the quality that was asked for.
    for pair in sorted(pairs, key=lambda one: -_n_of(one.sampled, quality, cells)):
        lines += _pair(pair, by_variant, currency)
    if not pairs:
        lines.append(_no_pair(costs, currency))
    for found in saturation:
        lines.append(_saturation(found))
    return lines


def _n_of(variant: str, quality: list[Quality], cells: list[CellResult]) -> int:
    sizes = {cell.variant: cell.n for cell in cells} | {one.variant: one.n for one in quality}
    return sizes.get(variant, 0)


def _pair(pair: BreakEven, costs: dict[str, VariantCost], currency: str) -> list[str]:
    tuned, sampled = costs[pair.tuned], costs[pair.sampled]
    prices = (
        f"1,000 answers cost {number(tuned.per_1000)} {currency} with {pair.tuned} and "
        f"{number(sampled.per_1000)} {currency} with {pair.sampled}"
    )
    levels = f"Throughput: {pair.tuned} {tuned.source}; {pair.sampled} {sampled.source}."
    if tuned.per_1000 >= sampled.per_1000:
        return [
            f"Keep {pair.sampled}: {pair.tuned} saves nothing here.",
            f"{prices}. {levels} {_reward(pair)}",
        ]
    ratio = pair.cost_ratio
    # The ratio of the two prices stated; the rounds only give its range.
    times = (
        f"{'at least ' if tuned.rising else ''}{number(sampled.per_1000 / tuned.per_1000)} times"
    )
    cheaper = f"{prices}: {times} less ({number(ratio.low)} to {number(ratio.high)} by round)"
    if pair.requests is None:
        first = (
            f"{pair.tuned} is {times} cheaper than {pair.sampled} per answer; its break-even point is "
            f"unknown ({pair.training_source})."
        )
        return [first, f"{cheaper}. {levels}", _reward(pair)]
    lasting = duration(pair.requests / sampled.requests_per_s.median)
    first = (
        f"Fine-tune ({pair.tuned}) if you will serve more than {number(pair.requests)} answers; below that, "
        f"{pair.sampled} is cheaper{_quality_clause(pair)}."
    )
    by_round = ""
    if pair.requests_low is not None and pair.requests_high is not None:
        by_round = f" ({number(pair.requests_low)} to {number(pair.requests_high)} by round)"
    paid = (
        f"{cheaper}. Training cost {number(pair.training_cost or 0.0)} {currency} "
        f"({pair.training_source}) and pays back after {number(pair.requests)} answers{by_round}: "
        f"{lasting} of serving at full load of {pair.sampled}. {levels}"
    )
    return [first, paid, _reward(pair)]


def _quality_clause(pair: BreakEven) -> str:
    given_up = pair.reward_given_up
    if given_up is None:
        return ""
    if given_up.low > 0:
        return f", and better by {number(given_up.mean)} of reward"
    if given_up.high < 0:
        return ", and worse in reward"
    return ", with no measurable difference in reward"


def _reward(pair: BreakEven) -> str:
    given_up = pair.reward_given_up
    if given_up is None:
        return "Reward was not measured, so nothing is known about quality."
    text = f"Reward given up: {interval_text(given_up)} (95% interval, {given_up.count} prompts)"
    if pair.win_rate_tuned is not None and pair.win_rate_sampled is not None:
        text += (
            f"; win rate {interval_text(pair.win_rate_tuned)} instead of "
            f"{interval_text(pair.win_rate_sampled)}"
        )
    if pair.equal_n is None:
        return f"{text}."
    if pair.equal_n_beyond:
        side = "below one sample" if pair.equal_n == 1 else f"above best-of-{pair.equal_n:.0f}"
        return f"{text}. The reward of {pair.tuned} is {side}."
    return (
        f"{text}. The reward of {pair.tuned} equals best-of-{pair.equal_n:.1f} "
        f"[{pair.equal_n_low:.1f}, {pair.equal_n_high:.1f}]."
    )


def _no_pair(costs: list[VariantCost], currency: str) -> str:
    if not costs:
        return "Nothing was answered, so there is nothing to decide."
    cheapest = min(costs, key=lambda cost: cost.per_1000)
    return (
        f"{cheapest.variant} is cheapest: {number(cheapest.per_1000)} {currency} per 1,000 answers. "
        "Measure a tuned checkpoint and a mode that samples several candidates to see when fine-tuning pays."
    )


def _saturation(found: Saturation) -> str:
    if found.rate is None:
        lowest = min((probe.rate for probe in found.probes), default=None)
        if lowest is None:
            return f"{found.variant} misses {found.slo_ms:g} ms even when idle."
        return f"{found.variant} misses a p95 of {found.slo_ms:g} ms even at {number(lowest)} requests/s."
    if not found.confirmed:
        return (
            f"{found.variant} kept its p95 within {found.slo_ms:g} ms at {number(found.rate)} requests/s in "
            "one probe; the search was not finished."
        )
    above = "" if found.above is None else f", but not at {number(found.above)}"
    return (
        f"{found.variant} keeps its p95 within {found.slo_ms:g} ms up to {number(found.rate)} "
        f"requests/s{above}."
    )
