"""Results in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.loadtest.analysis.compare import Comparison
from service.loadtest.report.tables import (
    break_even_sheet,
    latency_sheet,
    quality_sheet,
    saturation_sheet,
    throughput_sheet,
)
from service.loadtest.schema import LoadTestResult
from service.loadtest.text import number
from vbon.report_html import Sheet

if TYPE_CHECKING:
    from service.store import RunSummary


def show(console: Console, result: LoadTestResult) -> None:
    """The tables, then the decision, which so stands last, where one looks."""
    for sheet in (
        throughput_sheet(result),
        latency_sheet(result),
        quality_sheet(result),
        break_even_sheet(result),
        saturation_sheet(result),
    ):
        if sheet.rows:
            console.print(_table(sheet))
    for text in result.warnings:
        console.print(f"[yellow]care:[/] {escape(text)}", highlight=False)
    console.print()
    for i, text in enumerate(result.decision):
        console.print(escape(text), style="bold" if i == 0 else "", highlight=False)


def show_comparison(console: Console, found: Comparison) -> None:
    """Every figure of both runs, then the statement."""
    table = Table(
        title=f"B = {escape(found.b)} against A = {escape(found.a)}",
        caption="Intervals are of each figure alone; p allows for all speeds, or all rewards, together.",
        caption_justify="left",
    )
    for column in ("what", "measure", "A", "B", "change [95% interval]", "adjusted p", "B is"):
        table.add_column(column)
    for one in found.differences:
        form = "{:.3g}x" if one.relative else "{:+.3f}"
        change = form.format(one.change)
        if one.low is not None and one.high is not None:
            change += f" [{form.format(one.low)}, {form.format(one.high)}]"
        table.add_row(
            escape(one.what),
            one.measure,
            number(one.a),
            number(one.b),
            escape(change),
            "-" if one.p_adjusted is None else f"{one.p_adjusted:.4f}",
            one.verdict,
        )
    console.print(table)
    for name, (before, after) in found.settings_changed.items():
        console.print(escape(f"setting {name}: {before} in A, {after} in B"), highlight=False)
    if found.only_in_one:
        console.print(escape(f"in one run only: {'; '.join(found.only_in_one)}"), highlight=False)
    console.print(found.statement, style="bold", highlight=False)


def show_runs(console: Console, runs: Sequence[RunSummary]) -> None:
    """A line a run."""
    table = Table()
    for column in ("run", "measured", "server", "tags", "decision"):
        table.add_column(column, overflow="fold")
    for run in runs:
        when = f"{run.created:%Y-%m-%d %H:%M}"
        table.add_row(
            run.id, when, escape(run.url), escape(", ".join(run.tags)), escape(run.headline)
        )
    console.print(table)


def _table(sheet: Sheet) -> Table:
    table = Table(title=escape(sheet.title), caption=escape(sheet.caption), caption_justify="left")
    for i, column in enumerate(sheet.columns):
        table.add_column(escape(column), justify="right" if i > 1 else "left")
    for row in sheet.rows:
        table.add_row(*(escape(text) for text in row))
    return table
