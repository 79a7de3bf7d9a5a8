"""The ``report`` command: compares all methods from the records of sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.configs import ReportConfig
from training.report.data_files import write_data_files
from training.report.method_tables import pareto_tables
from training.report.spending_tables import spending_tables
from training.report.sweep_report import SweepReport, pooled_report, report_on
from training.sweep.records import Sweep, methods_of, read_sweep
from vbon.errors import DataError, ExportError
from vbon.report_html import ReportTable
from vbon.storage.atomic import write_json, write_text
from vbon.terminal import table_console


def write_report(config: ReportConfig) -> None:
    """Write ``report.html``, ``.md``, ``.json`` and ``frontier.png``, ``.svg`` into ``config.out``.

    Beside them, ``records.json`` and ``tables/*.csv`` let other programs check the figures. Each method has
    the same colour and marker in all sweeps. The main tables are also printed.

    Raises:
        DataError: no sweep was given, a sweep has no records, or a record is malformed.
        ExportError: a file could not be written; its previous version is untouched.
    """
    if not config.sweeps:
        raise DataError("no sweep directory was given; pass --sweeps DIR")
    sweeps = [read_sweep(directory) for directory in config.sweeps]
    reports = [report_on(sweep) for sweep in sweeps]
    if config.pool:
        reports.append(pooled_report(sweeps))
    paths = _write_files(sweeps, reports, config.out)
    console = table_console()
    for report in reports:
        _print_report(console, report)
    console.print(escape(", ".join(str(path) for path in paths)))


def _write_files(sweeps: Sequence[Sweep], reports: Sequence[SweepReport], out: Path) -> list[Path]:
    from training.report.html import html_page, markdown
    from training.report.plots import draw_sweeps, method_styles

    styles = method_styles(methods_of(sweeps))
    page = html_page(reports, styles)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"could not write {out}: {error.strerror or error}") from error
    plots = draw_sweeps(sweeps, styles, out)
    write_json(out / "report.json", {"sweeps": [_report_data(report) for report in reports]})
    write_text(out / "report.md", markdown(reports))
    write_text(out / "report.html", page)
    data = write_data_files(reports, out)
    return [*(out / f"report.{ending}" for ending in ("html", "md", "json")), *plots, *data]


def _report_data(report: SweepReport) -> dict[str, object]:
    return {
        "title": report.title,
        "directory": str(report.sweep.directory) if report.sweep else None,
        "summary": report.summary,
        "unfinished": list(report.sweep.unfinished) if report.sweep else [],
        "tables": {table.key: table.data for table in report.tables},
    }


def _print_report(console: Console, report: SweepReport) -> None:
    console.rule(escape(report.title))
    for line in report.summary:
        console.print(f"- {escape(line)}")
    tables = report.tables
    if report.sweep is not None:
        tables = [*spending_tables([report.sweep]), *pareto_tables(report.sweep)]
    for table in tables:
        console.print(_terminal_table(table))
    if tables:
        console.print("(a to b): smallest and largest seed. report.md explains the columns.")


def _terminal_table(table: ReportTable) -> Table:
    shown = Table(title=escape(table.title))
    for i, column in enumerate(table.columns):
        shown.add_column(escape(column), justify="right" if i else "left")
    for row in table.rows:
        shown.add_row(*(escape(text) for text in row))
    return shown
