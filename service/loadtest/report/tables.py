"""Builds the tables of a result, for the page and the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from service.loadtest.analysis.decision_rewards import equal_n_text
from service.loadtest.analysis.text import interval_text, number
from service.loadtest.schema import (
    BreakEven,
    Calibration,
    CellResult,
    LoadTestResult,
    Quality,
    Quantiles,
)
from vbon.maths.intervals import MedianRange
from vbon.report_html import ReportTable


def range_text(value: MedianRange | None) -> str:
    """The text ``median (smallest to largest)``; the median alone if all values are equal."""
    if value is None:
        return "-"
    if value.count == 1 or value.low == value.high:
        return number(value.median)
    return f"{number(value.median)} ({number(value.low)} to {number(value.high)})"


def share_text(value: float | None) -> str:
    """A share in percent, or a dash if it is unknown."""
    return "-" if value is None else f"{value:.0%}"


def load_text(cell: CellResult) -> str:
    """The load level of a cell, such as ``8 in flight`` or ``4/s``."""
    return f"{cell.load:g} in flight" if cell.load_kind == "closed" else f"{cell.load:g}/s"


def _ms(value: Quantiles | None, *names: str) -> str:
    if value is None:
        return "-"
    return " / ".join(f"{getattr(value, name):,.0f}" for name in names)


def _errors(cell: CellResult) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in cell.errors.items()) or "0"


CellText = Callable[[CellResult], str]
_THROUGHPUT: tuple[tuple[str, CellText], ...] = (
    ("mode", lambda c: c.variant),
    ("load", load_text),
    ("requests/s", lambda c: range_text(c.requests_per_s)),
    ("generated tokens/s", lambda c: range_text(c.generated_tokens_per_s)),
    ("returned tokens/s", lambda c: range_text(c.returned_tokens_per_s)),
    ("goodput/s", lambda c: range_text(c.goodput_per_s)),
    ("within SLOs", lambda c: "-" if c.goodput_share is None else f"{c.goodput_share:.1%}"),
    ("answered", lambda c: f"{c.requests:,}"),
    ("cut off", lambda c: share_text(c.truncated_share)),
    ("failed", _errors),
)
_LATENCY: tuple[tuple[str, CellText], ...] = (
    ("mode", lambda c: c.variant),
    ("load", load_text),
    ("E2E p50", lambda c: _ms(c.e2e_ms, "p50")),
    ("p90", lambda c: _ms(c.e2e_ms, "p90")),
    ("p95", lambda c: _ms(c.e2e_ms, "p95")),
    ("p99", lambda c: _ms(c.e2e_ms, "p99")),
    ("TTFT p50 / p95", lambda c: _ms(c.ttft_ms, "p50", "p95") if c.streamed else "whole"),
    ("TPOT p50 / p95", lambda c: _fine(c.tpot_ms)),
    ("ITL p50 / p95", lambda c: _fine(c.itl_ms)),
    ("queue p50 / p95", lambda c: _ms(c.queue_ms, "p50", "p95")),
    ("rerank p50 / p95", lambda c: _fine(c.rerank_ms)),
)


def _fine(value: Quantiles | None) -> str:
    return "-" if value is None else f"{value.p50:.1f} / {value.p95:.1f}"


def _cells(
    key: str,
    title: str,
    caption: str,
    result: LoadTestResult,
    columns: Sequence[tuple[str, CellText]],
) -> ReportTable:
    rows = tuple(tuple(text(cell) for _, text in columns) for cell in result.cells)
    return ReportTable(key, title, caption, tuple(name for name, _ in columns), rows, None)


def throughput_table(result: LoadTestResult) -> ReportTable:
    """The table of rates by cell."""
    caption = (
        "Median of the rounds (smallest to largest). Generated tokens include discarded candidates. "
        "No other figure includes failed requests. Cut off: share of the answers that max_tokens ended."
    )
    return _cells("cells throughput", "Throughput", caption, result, _THROUGHPUT)


def latency_table(result: LoadTestResult) -> ReportTable:
    """The table of latencies by cell, in ms."""
    caption = (
        "Milliseconds, over all answered requests of all rounds. In an open loop, time counts from when a "
        "request was due. TTFT, TPOT and ITL are those of streamed answers; whole: the answer comes in one "
        "piece, so its first token comes with its last. Rerank: scoring time that did not overlap with "
        "decoding."
    )
    return _cells("cells latency", "Latency", caption, result, _LATENCY)


def summary_table(result: LoadTestResult) -> ReportTable:
    """One row per variant: the rewards, the price, and the speed at the load with most answers a second."""
    costs = {cost.variant: cost for cost in result.costs}
    quality = {one.variant: one for one in result.quality}
    golden = any(one.gold is not None for one in result.quality)
    rows = []
    for variant in dict.fromkeys([*quality, *costs, *(cell.variant for cell in result.cells)]):
        one, cost = quality.get(variant), costs.get(variant)
        cells = [cell for cell in result.cells if cell.variant == variant]
        best = max(cells, key=lambda cell: cell.requests_per_s.median, default=None)
        most = "at most " if cost is not None and cost.rising else ""
        rows.append(
            (
                variant,
                interval_text(None if one is None else one.reward),
                *((interval_text(None if one is None else one.gold),) if golden else ()),
                interval_text(None if one is None else one.win_rate),
                "-" if cost is None else f"{most}{number(cost.per_1000)}",
                "-" if best is None else number(best.requests_per_s.median),
                "-" if best is None else _ms(best.e2e_ms, "p95"),
            )
        )
    columns = (
        "mode",
        "reward",
        *(("gold reward",) if golden else ()),
        f"win rate against {result.settings['baseline']}",
        f"{result.settings['currency']} per 1,000",
        "requests/s",
        "p95, ms",
    )
    caption = "Means [95% interval over prompts]; speed at the load with the most answers a second."
    caption += _upper_bounds(result)
    return ReportTable("summary", "Each mode in a line", caption, columns, tuple(rows), None)


def quality_table(result: LoadTestResult) -> ReportTable:
    """The table of rewards, win rates and the price of 1,000 answers by variant."""
    costs = {cost.variant: cost for cost in result.costs}
    quality = {one.variant: one for one in result.quality}
    currency = result.settings["currency"]
    golden = any(one.gold is not None for one in result.quality)
    rows = []
    for variant in dict.fromkeys([*quality, *costs]):
        one, cost = quality.get(variant), costs.get(variant)
        price = "-"
        if cost is not None:
            price = f"{number(cost.per_1000)} ({number(cost.low)} to {number(cost.high)})"
            price = f"at most {price}" if cost.rising else price
        rows.append(
            (
                variant,
                interval_text(None if one is None else one.reward),
                interval_text(None if one is None else one.win_rate),
                *(_gold_texts(one) if golden else ()),
                "-" if one is None else f"{one.answers:,}",
                "-" if one is None else str(one.unscored),
                share_text(None if one is None else one.truncated_share),
                price,
                "-" if cost is None else cost.source,
            )
        )
    caption = (
        "Means [95% bootstrap interval over prompts], scored outside the timed blocks on the same prompts. "
        f"Win rate: share of comparisons with {result.settings['baseline']} won; ties count 1/2. Answers "
        "that could not be scored are left out and counted. Cut off: share of the answers that max_tokens "
        "ended; they are scored as they are. Costs at the highest throughput measured "
        "(cheapest to dearest round)."
    )
    caption += _upper_bounds(result)
    columns = (
        "mode",
        "mean reward",
        "win rate",
        *(("mean gold reward", "gold win rate") if golden else ()),
        "scored answers",
        "unscored",
        "cut off",
        f"{currency} per 1,000 answers",
        "throughput from",
    )
    return ReportTable("quality", "Reward and cost", caption, columns, tuple(rows), None)


def _upper_bounds(result: LoadTestResult) -> str:
    """A sentence that says why prices are "at most" what is shown; empty if none is."""
    found = [f"{cost.variant} {cost.source}" for cost in result.costs if cost.rising]
    if not found:
        return ""
    return (
        f" At most: not fully loaded ({', '.join(found)}), so the true price is lower; the warnings say "
        "what to do."
    )


def _gold_texts(one: Quality | None) -> tuple[str, str]:
    if one is None:
        return "-", "-"
    return interval_text(one.gold), interval_text(one.gold_win_rate)


def _paid_after(pair: BreakEven, *, at_equal_reward: bool = False) -> str:
    """The answers to break-even with their range, at equal reward or at the sampled variant's."""
    ratio = pair.equal_cost_ratio if at_equal_reward else pair.cost_ratio
    found = (pair.requests, pair.requests_low, pair.requests_high)
    if at_equal_reward:
        found = (pair.equal_requests, pair.equal_requests_low, pair.equal_requests_high)
    if ratio is None:
        return "-"
    if pair.training_cost is None:
        return "unknown"
    if ratio.high <= 1:
        return "never"
    point, low, high = found
    if ratio.low <= 1 or point is None or low is None or high is None:
        return "too close to call"
    below = "below " if at_equal_reward and pair.equal_n_high_open else ""
    return f"{number(point)} ({below}{number(low)} to {number(high)})"


def break_even_table(result: LoadTestResult) -> ReportTable:
    """The table of all pairs of a tuned policy and a mode that samples several candidates."""
    rows = []
    for pair in result.break_even:
        decided = pair.state == "decided"
        equal = "-"
        if pair.equal_n is not None:
            equal = equal_n_text(pair)
        cost = "-" if pair.training_cost is None else number(pair.training_cost)
        rows.append(
            (
                pair.tuned,
                pair.sampled,
                pair.state,
                equal,
                range_text(pair.equal_cost_ratio if decided else None),
                _paid_after(pair, at_equal_reward=True) if decided else "-",
                interval_text(pair.reward_given_up),
                range_text(pair.cost_ratio if decided else None),
                _paid_after(pair) if decided else "-",
                cost,
                pair.training_source,
            )
        )
    currency = result.settings["currency"]
    caption = (
        "Equal N: the N at which best-of-N has the tuned policy's reward. Cost ratio: best-of-N's cost "
        "divided by the tuned one's. Paid after: answers after which the savings equal the cost of the "
        "training. Reward given up: sampled minus tuned, paired by prompt, by the gold reward model if the "
        "server has one. (a to b): range over rounds, which encloses the median with a probability of 94% or "
        "more. What is not decided has no number; the text says why."
    )
    columns = (
        "tuned",
        "against",
        "state",
        "equal N",
        "cost ratio there",
        "paid after, answers",
        "reward given up",
        "cost ratio",
        "paid after then",
        f"training, {currency}",
        "training from",
    )
    return ReportTable("break-even", "Break-even", caption, columns, tuple(rows), None)


def saturation_table(result: LoadTestResult) -> ReportTable:
    """The table of saturation rates, with the rates that were probed."""
    rows = tuple(
        (
            one.variant,
            "none" if one.rate is None else number(one.rate),
            "-" if one.above is None else number(one.above),
            "-" if one.p95_ms is None else f"{one.p95_ms:,.0f}",
            ", ".join(f"{number(p.rate)} {'passed' if p.passed else 'failed'}" for p in one.probes)
            or "-",
        )
        for one in result.saturation
    )
    limit = result.saturation[0].slo_ms if result.saturation else 0.0
    caption = (
        f"The highest rate at which 95% of requests were answered within {limit:g} ms, in two probes. "
        "Time counts from when a request was due."
    )
    columns = ("mode", "requests/s", "failed at", "p95 there, ms", "rates probed, in order")
    return ReportTable("saturation", "Saturation", caption, columns, rows, None)


def settings_table(result: LoadTestResult) -> ReportTable:
    """The table of settings, revisions and versions needed to repeat the run."""
    facts: dict[str, object] = {
        "run": result.id,
        "measured": result.created,
        "server": f"{result.server.url} ({result.server.api})",
        **{f"--{name.replace('_', '-')}": value for name, value in result.settings.items()},
    }
    if result.calibration is not None:
        facts["calibrated levels"] = _calibrated_text(result.calibration)
        facts["probes of the calibration"] = "; ".join(
            f"{one.variant} at {one.in_flight} in flight: {number(one.requests_per_s)} requests/s"
            for one in result.calibration.probes
        )
    for mode in result.server.modes:
        if mode.policy is not None and mode.name == mode.policy.name:
            facts[f"policy {mode.name}"] = f"{mode.policy.path} ({mode.policy.revision})"
            if mode.training is not None:
                facts[f"what {mode.name} is"] = mode.training.description
    for mode in result.server.modes:
        if mode.reward_model is not None:
            facts["reward model"] = f"{mode.reward_model.path} ({mode.reward_model.revision})"
    gold = result.server.gold_model
    if gold is not None:
        facts["gold reward model"] = f"{gold.path} ({gold.revision})"
    facts |= {key: value for key, value in result.provenance.items() if value is not None}
    rows = tuple(
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in facts.items()
    )
    return ReportTable(
        "settings",
        "Settings and revisions",
        "Everything needed to repeat the run.",
        ("what", "value"),
        rows,
        None,
    )


def _calibrated_text(calibration: Calibration) -> str:
    """The chosen requests in flight of each variant, with the lengths of their blocks."""
    levels: dict[str, list[str]] = {}
    for cell in calibration.cells:
        levels.setdefault(cell.variant, []).append(f"{cell.in_flight} ({cell.duration_s:g} s)")
    return "; ".join(f"{variant} {', '.join(own)}" for variant, own in levels.items())


def examples_table(result: LoadTestResult) -> ReportTable | None:
    """The table of example answers; ``None`` if the result has none."""
    if not result.examples:
        return None
    names = list(dict.fromkeys(name for one in result.examples for name in one.answers))
    rows = []
    for example in result.examples:
        cells = []
        for name in names:
            answer = example.answers.get(name)
            reward = "-" if answer is None or answer.reward is None else f"{answer.reward:+.2f}"
            cells.append("-" if answer is None else f"[{reward}] {answer.text}")
        rows.append((example.prompt, *cells))
    caption = "The first prompts with each mode's first answer and its reward."
    return ReportTable("examples", "Answers", caption, ("prompt", *names), tuple(rows), None)
