"""Renders a report as one self-contained HTML file, and as Markdown with the same tables."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from training.report.plots import CURVE_COLOUR, CURVE_NAME, Style, page_chart
from training.report.sweep_report import SweepReport
from training.report.text import planes_of
from training.sweep.records import Sweep, methods_of
from vbon.report_html import render_page
from vbon.report_html.bundle import bundle, chart_files, json_for_script

TEMPLATE = Path(__file__).parent / "templates" / "sweeps.html"
SCRIPT = Path(__file__).parent / "static" / "sweeps.js"
TITLE = "Ways to distil best-of-N"
TERMS = (
    "Win rate: the share of comparisons with one sample of the reference policy that the answer wins "
    "by the reward model, ties counted 1/2. KL: nats from the reference policy; the upper bound "
    "log n - (n-1)/n for best-of-n, Rao-Blackwellised for a tuned policy. [a, b] is a 95% interval over "
    "prompts, and over seeds and sandboxes where a caption says so; (a to b) are the smallest and largest "
    "seed or point, not an interval. A gold reward model "
    "is never used to select or train: where the reward rises and gold does not, the method "
    "over-optimises."
)


def html_page(reports: Sequence[SweepReport], styles: Mapping[str, Style]) -> str:
    """The whole page; every text from a record is escaped."""
    sections = [
        {
            "title": report.title,
            "summary": report.summary,
            "legend": _legend(report.sweep, styles) if report.sweep else [],
            "plots": _captions(number, report.sweep) if report.sweep else [],
            "tables": report.tables,
        }
        for number, report in enumerate(reports)
    ]
    charts = {
        _chart_id(number, field): page_chart(report.sweep, field, styles)
        for number, report in enumerate(reports)
        if report.sweep
        for field in planes_of(report.sweep)
    }
    files = chart_files() | {SCRIPT.name: SCRIPT.read_bytes()}
    return render_page(
        TEMPLATE,
        {
            "title": TITLE,
            "terms": TERMS,
            "sections": sections,
            "style": Markup(files["charts.css"].decode()),
            "script": Markup(bundle(SCRIPT.name, files)),
            "chart_json": Markup(json_for_script(charts)),
        },
    )


def _legend(sweep: Sweep, styles: Mapping[str, Style]) -> list[tuple[str, str, str]]:
    """The name, colour and glyph of the curve and of each plotted method."""
    plotted = {cell.method for cell in sweep.measured.values()}
    entries = [(CURVE_NAME, CURVE_COLOUR, "\N{EM DASH}")]
    entries += [
        (method, styles[method].colour, styles[method].glyph)
        for method in methods_of([sweep])
        if method in plotted
    ]
    # The variation selector keeps browsers from showing the glyph as an emoji.
    return [(name, colour, f"{glyph}\ufe0e") for name, colour, glyph in entries]


def _chart_id(number: int, field: str) -> str:
    return f"plot-{number}-{field}"


def _captions(number: int, sweep: Sweep) -> list[tuple[str, str]]:
    """The place of each plane's chart, with its caption."""
    return [
        (
            _chart_id(number, field),
            f"KL and {label}. Grey: best-of-n at its KL upper bound. Bars: 95% intervals over prompts. "
            "Pale points: another point of the same seed has no more KL and no lower "
            f"{label}.",
        )
        for field, label in planes_of(sweep).items()
    ]


def markdown(reports: Sequence[SweepReport]) -> str:
    """The summaries and tables as Markdown."""
    lines = [f"# {TITLE}", "", TERMS, ""]
    for report in reports:
        lines += [f"## {_escaped(report.title)}", ""]
        lines += [*(f"- {_escaped(line)}" for line in report.summary), ""]
        for table in report.tables:
            marks = ("---:" if kind == "figure" else "---" for kind in table.column_kinds)
            lines += [f"### {_escaped(table.title)}", "", _escaped(table.caption), ""]
            lines += [_line(table.columns), f"| {' | '.join(marks)} |"]
            lines += [*(_line(row) for row in table.rows), ""]
    return "\n".join(lines)


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(_escaped(text) for text in texts)} |"


def _escaped(text: str) -> str:
    one_line = " ".join(text.split())
    return html.escape(one_line, quote=False).replace("|", "\\|")
