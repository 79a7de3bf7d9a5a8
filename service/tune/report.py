"""The report of a run in the terminal: the verdict in three lines, then one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.tune.choice import best, closest, front, shortfall
from service.tune.outputs import interval_words
from service.tune.question import Priced, Question
from service.tune.search import Findings, price_text

_ROWS = 8


def print_report(
    console: Console,
    question: Question,
    found: Findings,
    *,
    currency: str = "USD",
    pareto: bool = False,
) -> None:
    """Print the verdict and the table.

    Args:
        pareto: print all settings of the front instead of those that were measured again.
    """
    for line in verdict(question, found, currency):
        console.print(line, highlight=False, markup=False)
    rows, where = shown_rows(question, found, pareto=pareto)
    if rows:
        console.print(settings_table(question, rows, where, found, currency))
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def verdict(question: Question, found: Findings, currency: str = "USD") -> list[str]:
    """Three lines: what was found, by how much it holds, and what it costs."""
    row = found.recommended
    if row is not None:
        first = f"Recommended: {row.setting.label}"
        second = _held(question, row)
        return [first, second, _price_line(question, found, row, currency)]
    if found.status in ("running", "interrupted"):
        so_far = best(question, found.rows) or closest(question, found.rows)
        words = "nothing was measured" if so_far is None else f"best so far {so_far.setting.label}"
        third = "" if so_far is None else f"On the tuning prompts, {_gain(question, so_far)}."
        return [
            f"Interrupted after {found.trials} trials: {words}.",
            "It was neither measured again on other prompts nor under load; the same command goes on.",
            third,
        ]
    near = found.nearest
    if near is None:
        return [f"Nothing was found for {question}.", "No setting could be measured.", ""]
    return [
        f"Not reached: {question}",
        f"Closest: {near.setting.label}",
        f"{shortfall(question, near)[:1].upper()}{shortfall(question, near)[1:]}.",
    ]


def _gain(question: Question, row: Priced) -> str:
    return f"{question.metric} {interval_words(row.gains[question.metric])}"


def _held(question: Question, row: Priced) -> str:
    said = f"{_gain(question, row)} on {row.gains[question.metric].count} test prompts"
    if row.margin is None:
        return f"{said}, the highest within the limits."
    return f"{said}; {question.target} holds by {interval_words(row.margin)} with other prompts and seeds."


def _price_line(question: Question, found: Findings, row: Priced, currency: str) -> str:
    said = f"{price_text(question, row.price, currency)} an answer"
    if row.price != row.tokens.mean:
        said += f", {row.tokens.mean:.4g} tokens"
    if question.price == "cost" and question.price_per_hour is None:
        said += " (cost is taken as proportional to tokens, since no --price-per-hour was given)"
    timing = next(
        (timing for one, timing, why in found.stress if one == row.setting and not why), None
    )
    if timing is not None:
        said += (
            f"; under load p95 {timing.p95_s.mean * 1e3:.4g} ms, {timing.answers_per_s:.4g} answers/s, "
            f"{timing.failed} of {timing.requests + timing.failed} requests failed"
        )
    return f"{said}."


def shown_rows(question: Question, found: Findings, *, pareto: bool) -> tuple[list[Priced], str]:
    """The rows of the table, and the prompts that their figures come from."""
    if pareto or not (found.tested or found.validated):
        rows = front(question, found.rows)
        return (rows if pareto else rows[:_ROWS]), "tuning prompts"
    if found.tested:  # the recommended one first, and then those that are dearer
        tested = sorted(found.tested, key=lambda row: row.price)
        return sorted(tested, key=lambda row: row is not found.recommended)[:_ROWS], "test prompts"
    return sorted(found.validated, key=_nearness(question))[:_ROWS], "validation prompts"


def _nearness(question: Question) -> Callable[[Priced], tuple[bool, float, float]]:
    def key(row: Priced) -> tuple[bool, float, float]:
        lower = row.margin.low if row.margin is not None else row.gains[question.metric].low
        return bool(row.over_limits), -lower, row.price

    return key


def settings_table(
    question: Question, rows: Sequence[Priced], where: str, found: Findings, currency: str
) -> Table:
    """The table of some settings."""
    level = (
        "" if found.level is None else f"; the target is {found.level:.4g} on the tuning prompts"
    )
    table = Table(
        title=f"{question}",
        caption=f"means [95% interval over {where}]{level}; latencies of settings that were not measured "
        "themselves are interpolated in N",
    )
    table.add_column("setting", ratio=3)
    metrics = [
        name for name in ("reward", "gold", "win-rate") if any(name in r.gains for r in rows)
    ]
    for name in metrics:
        table.add_column(name, justify="right")
    for name in ("tokens", "p95, ms", "price", "holds"):
        table.add_column(name, justify="right")
    for row in rows:
        gains = [
            interval_words(row.gains[name]) if name in row.gains else "-"  # type: ignore[index]
            for name in metrics
        ]
        p95 = "-" if row.expected is None else f"{row.expected.p95_s.mean * 1e3:.4g}"
        mark = "recommended" if found.recommended is row else ("yes" if row.feasible else "no")
        table.add_row(
            escape(row.setting.label),
            *gains,
            f"{row.tokens.mean:.4g}",
            p95,
            price_text(question, row.price, currency) if row.price < float("inf") else "-",
            mark,
        )
    return table
