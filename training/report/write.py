"""``report``: the frontier of every way to distil best-of-N, from the records of sweeps."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from training.configs import ReportConfig
from training.report.method_tables import pareto_sheets, sheets, target_sheets
from training.report.summary import summary
from training.sweep.records import methods_of, read_sweep
from vbon.errors import DataError, ExportError
from vbon.report_html import ReportTable
from vbon.storage.atomic import write_json, write_text
from vbon.terminal import table_console


def write_report(config: ReportConfig) -> None:
    """Write ``report.html``, ``.md``, ``.json`` and ``frontier.png``, ``.svg`` into ``config.out``.

    A method looks the same in all sweeps. The main tables are printed as well.

    Raises:
        DataError: no sweep, or one without records, or a malformed record (names the file).
        ExportError: if a file cannot be written; what was there before is untouched.
    """
    if not config.sweeps:
        raise DataError("no sweep directory was given")
    sweeps, out = [read_sweep(directory) for directory in config.sweeps], config.out
    from training.report.html import html_page, markdown
    from training.report.plots import draw_sweeps, styles

    look = styles(methods_of(sweeps))
    summaries = [summary(sweep) for sweep in sweeps]
    tables = [sheets(sweep) for sweep in sweeps]
    page = html_page(sweeps, summaries, tables, look)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"could not write {out}: {error.strerror or error}") from error
    plots = draw_sweeps(sweeps, look, out)
    write_json(
        out / "report.json",
        {
            "sweeps": [
                {
                    "title": sweep.baseline.title,
                    "directory": str(sweep.directory),
                    "summary": found,
                    "unfinished": list(sweep.unfinished),
                    "tables": {sheet.key: sheet.data for sheet in group},
                }
                for sweep, found, group in zip(sweeps, summaries, tables, strict=True)
            ]
        },
    )
    write_text(out / "report.md", markdown(sweeps, summaries, tables))
    write_text(out / "report.html", page)
    console = table_console()
    for sweep, found in zip(sweeps, summaries, strict=True):
        console.rule(escape(sweep.baseline.title))
        for line in found:
            console.print(f"- {escape(line)}")
        if sweep.measured:
            for sheet in [*pareto_sheets(sweep), *target_sheets(sweep)]:
                console.print(_table(sheet))
            console.print("(a to b): smallest and largest seed. What the columns mean: report.md")
    names = [str(out / f"report.{kind}") for kind in ("html", "md", "json")]
    console.print(escape(", ".join([*names, *(str(plot) for plot in plots)])))


def _table(sheet: ReportTable) -> Table:
    table = Table(title=escape(sheet.title))
    for i, column in enumerate(sheet.columns):
        table.add_column(escape(column), justify="right" if i else "left")
    for row in sheet.rows:
        table.add_row(*(escape(text) for text in row))
    return table
