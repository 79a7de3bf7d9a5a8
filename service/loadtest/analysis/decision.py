"""Puts the result into words: the cost at equal reward first, then the price of giving up reward."""

from __future__ import annotations

from collections.abc import Sequence

from service.loadtest.analysis.decision_rewards import equal_n_text, reward_side, reward_words
from service.loadtest.analysis.text import duration, number
from service.loadtest.analysis.verdict import WIDEST_BREAK_EVEN
from service.loadtest.schema import BreakEven, CellResult, Quality, Saturation, VariantCost
from vbon.maths.intervals import MedianRange


def decide(
    pairs: list[BreakEven],
    costs: list[VariantCost],
    quality: list[Quality],
    cells: list[CellResult],
    saturation: list[Saturation],
    currency: str,
) -> list[str]:
    """The conclusions in sentences; the first ones answer "N times inference or one fine-tune?"."""
    sizes = {cell.variant: cell.n for cell in cells} | {one.variant: one.n for one in quality}
    # The largest N comes first, because it is the quality that was asked for.
    ordered = sorted(pairs, key=lambda one: -sizes.get(one.sampled, 0))
    by_variant = {cost.variant: cost for cost in costs}
    lines: list[str] = []
    for tuned in dict.fromkeys(pair.tuned for pair in ordered):
        own = [pair for pair in ordered if pair.tuned == tuned]
        lines += _at_equal_reward(own)
        for pair in own:
            lines += _pair(pair, by_variant, currency)
    if not pairs:
        lines += _no_pair(costs, cells, currency)
    lines += [_saturation(found) for found in saturation]
    return lines


def _at_equal_reward(pairs: Sequence[BreakEven]) -> list[str]:
    """The comparison with best-of-n at the tuned policy's reward, from the nearest decided N above it."""
    known = [p for p in pairs if p.state == "decided" and p.equal_cost_ratio is not None]
    if not known:
        return []
    pair = known[-1]  # the smallest N that reaches the reward
    ratio = pair.equal_cost_ratio
    assert ratio is not None
    kind = "gold reward" if pair.judged_by == "gold" else "reward"
    same = (
        f"{pair.tuned} has the {kind} of best-of-{equal_n_text(pair)}, whose answer costs "
        f"{_times(ratio, above=pair.equal_n_high_open)} as much (interpolated {pair.equal_cost_source})"
    )
    if ratio.high <= 1:
        return [f"At equal reward, {pair.tuned} saves nothing: {same}."]
    if ratio.low <= 1:
        return [
            f"At equal reward, it is too close to call whether {pair.tuned} saves anything: {same}."
        ]
    if pair.training_cost is None:
        return [
            f"At equal reward, the break-even point is unknown ({pair.training_source}): {same}."
        ]
    low, high = pair.equal_requests_low, pair.equal_requests_high
    if pair.equal_requests is None or low is None or high is None or high > WIDEST_BREAK_EVEN * low:
        return [f"At equal reward, when {pair.tuned} pays is too uncertain for a number: {same}."]
    fewest = f"{'below ' if pair.equal_n_high_open else ''}{number(low)}"
    return [
        f"At equal reward, fine-tune ({pair.tuned}) if you will serve more than "
        f"{number(pair.equal_requests)} answers ({fewest} to {number(high)}): {same}."
    ]


def _times(ratio: MedianRange, *, above: bool) -> str:
    more = "above " if above else ""
    return f"{number(ratio.median)} times ({number(ratio.low)} to {more}{number(ratio.high)})"


def _pair(pair: BreakEven, costs: dict[str, VariantCost], currency: str) -> list[str]:
    who = f"{pair.tuned} against {pair.sampled}"
    if pair.state == "not measured":
        return [f"Not measured: {who}: {'; '.join(pair.reasons)}.", reward_words(pair)]
    if pair.state == "preliminary":
        reasons = "; ".join(pair.reasons) or "the run says nothing of its conditions"
        return [f"Preliminary, so without a number: {who}: {reasons}.", reward_words(pair)]
    return _decided(pair, costs, currency)


def _decided(pair: BreakEven, costs: dict[str, VariantCost], currency: str) -> list[str]:
    tuned, sampled = (
        _price(pair.tuned_per_1000, costs[pair.tuned]),
        _price(pair.sampled_per_1000, costs[pair.sampled]),
    )
    levels = (
        f"Throughput: {pair.tuned} {costs[pair.tuned].source}; {pair.sampled} "
        f"{costs[pair.sampled].source}."
    )
    prices = (
        f"1,000 answers cost {number(tuned)} {currency} with {pair.tuned} and {number(sampled)} {currency} "
        f"with {pair.sampled}"
    )
    ratio, side = pair.cost_ratio, reward_side(pair.reward_given_up)
    per_unit = _per_unit(tuned, sampled, pair, currency)
    if ratio.high <= 1:
        if side == "better":
            first = (
                f"A trade: {pair.tuned} costs {number(tuned / sampled)} times as much as {pair.sampled} and "
                f"is better: {per_unit}."
            )
        elif side == "worse":
            first = f"Keep {pair.sampled}: it has more reward than {pair.tuned} and costs no more."
        else:
            first = f"Keep {pair.sampled}: {pair.tuned} saves nothing, and its reward is too close to call."
        return [first, f"{prices}. {levels}", reward_words(pair)]
    if ratio.low <= 1:
        first = (
            f"Too close to call whether {pair.tuned} or {pair.sampled} is cheaper per answer; "
            f"{_reward_clause(side, per_unit)}."
        )
        return [first, f"{prices}. {levels}", reward_words(pair)]
    # The ratio is that of the two prices stated; the rounds only give its range.
    cheaper = (
        f"{prices}: {number(sampled / tuned)} times less ({number(ratio.low)} to "
        f"{number(ratio.high)} by round)"
    )
    if pair.requests is None:
        first = (
            f"{pair.tuned} is {number(sampled / tuned)} times cheaper than {pair.sampled} per answer; its "
            f"break-even point is unknown ({pair.training_source}); {_reward_clause(side, per_unit)}."
        )
        return [first, f"{cheaper}. {levels}", reward_words(pair)]
    answers = f"{number(pair.requests)} answers"
    first = f"Fine-tune ({pair.tuned}) if you will serve more than {answers}"
    first += {
        "better": f": it has more reward than {pair.sampled} and is then cheaper too.",
        "worse": f" and accept less reward; below that, {pair.sampled} is cheaper, and better: {per_unit}.",
        "unclear": f"; below that, {pair.sampled} is cheaper. Their rewards are too close to call.",
    }[side]
    return [first, f"{cheaper}. {_training(pair, costs, currency)} {levels}", reward_words(pair)]


def _price(measured: MedianRange | None, cost: VariantCost) -> float:
    return cost.per_1000 if measured is None else measured.median


def _per_unit(tuned: float, sampled: float, pair: BreakEven, currency: str) -> str:
    """The price of one unit of reward in a trade of price against reward."""
    given_up = pair.reward_given_up
    if given_up is None or given_up.mean == 0:
        return "its price is unknown"
    unit = abs((sampled - tuned) / given_up.mean)
    return (
        f"{number(unit)} {currency} per 1,000 answers for each unit of reward "
        f"({number(abs(given_up.mean))} here)"
    )


def _reward_clause(side: str, per_unit: str) -> str:
    return {
        "better": "it is better in reward",
        "worse": f"it is worse in reward ({per_unit})",
        "unclear": "their rewards are too close to call",
    }[side]


def _training(pair: BreakEven, costs: dict[str, VariantCost], currency: str) -> str:
    by_round = ""
    if pair.requests_low is not None and pair.requests_high is not None:
        by_round = f" ({number(pair.requests_low)} to {number(pair.requests_high)} by round)"
    requests = pair.requests or 0.0
    lasting = duration(requests / costs[pair.sampled].requests_per_s.median)
    return (
        f"Training cost {number(pair.training_cost or 0.0)} {currency} ({pair.training_source}) and pays "
        f"back after {number(requests)} answers{by_round}: {lasting} of serving at full load of "
        f"{pair.sampled}."
    )


def _no_pair(costs: list[VariantCost], cells: Sequence[CellResult], currency: str) -> list[str]:
    """The reason that nothing is decided, and the prices that were measured."""
    priced = {cost.variant for cost in costs}
    without = list(dict.fromkeys(cell.variant for cell in cells if cell.variant not in priced))
    lines = []
    if without:
        good = " within the SLOs" if any(cell.goodput_per_s for cell in cells) else ""
        lines.append(
            f"{', '.join(without)} answered nothing{good} in half of the rounds, and so has no price."
        )
    if not costs:
        return [*lines, "Nothing was answered, so there is nothing to decide."]
    cheapest, *others = sorted(costs, key=lambda cost: cost.per_1000)
    close = [cost.variant for cost in others if cost.low <= cheapest.high]
    word = f"as cheap as {', '.join(close)} within the range over rounds" if close else "cheapest"
    most, bound = "", ""
    if cheapest.rising:
        most = "at most "
        bound = f" (it was not fully loaded {cheapest.source}, so the true price is lower)"
    first = (
        f"Not measured: whether to fine-tune. {cheapest.variant} is {word if others else 'priced'}: {most}"
        f"{number(cheapest.per_1000)} {currency} per 1,000 answers{bound}. Measure a tuned checkpoint and a "
        "mode that samples several candidates to see when fine-tuning pays."
    )
    return [first, *lines]


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
