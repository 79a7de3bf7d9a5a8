"""Prints results, comparisons and lists of runs in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.loadtest.analysis.comparison import Comparison, Difference
from service.loadtest.analysis.text import number, signed
from service.loadtest.report.tables import (
    break_even_table,
    latency_table,
    quality_table,
    saturation_table,
    summary_table,
    throughput_table,
)
from service.loadtest.schema import LoadTestResult
from vbon.terminal import print_tables, print_verdict, print_warnings

if TYPE_CHECKING:
    from service.store import RunSummary


def print_result(console: Console, result: LoadTestResult, *, full: bool = False) -> None:
    """Print the verdict in three sentences, one table and the first warnings; all of it if ``full``."""
    print_verdict(console, result.decision, full=full)
    tables = [summary_table(result)]
    if full:
        tables = [
            quality_table(result),
            break_even_table(result),
            saturation_table(result),
            throughput_table(result),
            latency_table(result),
        ]
    print_tables(console, tables)
    print_warnings(console, result.warnings, full=full)
    if not full:
        console.print(
            f"every figure: vbon loadtest show {result.id} --full", style="dim", highlight=False
        )


def print_comparison(console: Console, found: Comparison) -> None:
    """Print every figure of both runs, then the conclusion."""
    table = Table(
        title=f"B = {escape(found.b)} against A = {escape(found.a)}",
        caption="Intervals are for each figure alone; p is adjusted for all speeds or all rewards together.",
        caption_justify="left",
    )
    for column in ("what", "measure", "A", "B", "change [95% interval]", "adjusted p", "B is"):
        table.add_column(column)
    for one in found.differences:
        change = _change(one, one.change)
        if one.low is not None and one.high is not None:
            change += f" [{_change(one, one.low)}, {_change(one, one.high)}]"
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
    for name, (older, newer) in found.models_changed.items():
        text = f"model {name}: {older or 'absent'} in A, {newer or 'absent'} in B"
        console.print(escape(text), highlight=False)
    if found.only_in_one:
        console.print(escape(f"in one run only: {'; '.join(found.only_in_one)}"), highlight=False)
    console.print(found.statement, style="bold", highlight=False)


def _change(one: Difference, value: float) -> str:
    return f"{number(value)}x" if one.relative else signed(value)


def print_runs(console: Console, runs: Sequence[RunSummary]) -> None:
    """Print one line per run."""
    table = Table()
    for column in ("run", "measured", "server", "tags", "decision"):
        table.add_column(column, overflow="fold")
    for run in runs:
        when = f"{run.created:%Y-%m-%d %H:%M}"
        table.add_row(
            run.id, when, escape(run.url), escape(", ".join(run.tags)), escape(run.headline)
        )
    console.print(table)
