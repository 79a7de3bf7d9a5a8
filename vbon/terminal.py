"""Prints verdicts, tables and warnings to the terminal in one form for all commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from vbon.report_html import ReportTable

LOG_WIDTH = 130
VERDICT_LINES = 3
WARNINGS = 3


def table_console() -> Console:
    """A console as wide as the terminal, or 130 columns for a file, enough to keep intervals in one line."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


def print_verdict(console: Console, sentences: Sequence[str], *, full: bool = False) -> None:
    """Print the first three sentences of a verdict, the first one in bold; all of them if ``full``."""
    for i, text in enumerate(sentences if full else sentences[:VERDICT_LINES]):
        console.print(text, style="bold" if i == 0 else "", highlight=False, markup=False)
    console.print()


def print_tables(console: Console, tables: Sequence[ReportTable]) -> None:
    """Print tables; those without rows are left out."""
    for table in tables:
        if table.rows:
            console.print(_rich_table(table))


def print_warnings(
    console: Console, warnings: Sequence[str], *, full: bool = False, rest: str = "in the report"
) -> None:
    """Print the first three warnings and where the others are; all of them if ``full``.

    Args:
        rest: words that tell where the others are.
    """
    shown = warnings if full else warnings[:WARNINGS]
    for text in shown:
        console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False)
    left = len(warnings) - len(shown)
    if left:
        console.print(f"{left} more warning{'s' if left > 1 else ''} {rest}", highlight=False)


def duration(seconds: float) -> str:
    """A rough duration for people: seconds below a minute and a half, else minutes, hours or days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    value, unit = (seconds / 3600, "h") if seconds < 2 * 86400 else (seconds / 86400, "days")
    return f"{value:.1f}".removesuffix(".0") + f" {unit}" if value < 10 else f"{value:.0f} {unit}"


def _rich_table(report_table: ReportTable) -> Table:
    table = Table(
        title=escape(report_table.title),
        caption=escape(report_table.caption),
        caption_justify="left",
    )
    kinds = report_table.column_kinds
    for i, column in enumerate(report_table.columns):
        table.add_column(escape(column), justify="right" if i > 1 or kinds[i] else "left")
    for row in report_table.rows:
        table.add_row(*(escape(text) for text in row))
    return table
