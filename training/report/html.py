"""The report as one HTML file that loads nothing, and the same tables as Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from training.report.plots import CURVE_COLOUR, CURVE_NAME, Style, page_figure
from training.report.text import planes_of
from training.sweep.records import Sweep, methods_of
from vbon.report_html import ReportTable, plot_html, render_page

TEMPLATE = Path(__file__).parent / "templates" / "sweeps.html"
TITLE = "Ways to distil best-of-N"
TERMS = (
    "Win rate: share of comparisons with one sample of the reference policy that the answer wins "
    "by the reward model, ties counted 1/2. KL: nats from the reference policy; best-of-n's is the "
    "upper bound log n - (n-1)/n, a tuned policy's is Rao-Blackwellised. [a, b] is a 95% interval "
    "over prompts; (a to b) the smallest and largest seed or point, which is no interval. A gold "
    "reward model, where there is one, neither selects nor trains: where the reward rises and gold "
    "does not, the method over-optimises."
)


def html_page(
    sweeps: Sequence[Sweep],
    summaries: Sequence[list[str]],
    sheets: Sequence[list[ReportTable]],
    look: dict[str, Style],
) -> str:
    """The whole page; every text from a record is escaped."""
    sections = [
        {
            "title": sweep.baseline.title,
            "summary": summaries[number],
            "legend": _legend(sweep, look),
            "plots": _plots(number, sweep, look),
            "tables": sheets[number],
        }
        for number, sweep in enumerate(sweeps)
    ]
    return render_page(TEMPLATE, {"title": TITLE, "terms": TERMS, "sections": sections})


def _legend(sweep: Sweep, look: dict[str, Style]) -> list[tuple[str, str, str]]:
    """Name, colour and glyph of the curve and of every method that is drawn."""
    drawn = {cell.cell.variant for cell in sweep.measured.values()}
    entries = [(CURVE_NAME, CURVE_COLOUR, "\N{EM DASH}")]
    entries += [(m, look[m].colour, look[m].glyph) for m in methods_of([sweep]) if m in drawn]
    # The selector asks for the glyph as text, not as an emoji.
    return [(name, colour, f"{glyph}\ufe0e") for name, colour, glyph in entries]


def _plots(number: int, sweep: Sweep, look: dict[str, Style]) -> list[tuple[Markup, str]]:
    """The plot of each plane with its caption; the first one of the page includes plotly's script."""
    return [
        (
            plot_html(
                page_figure(sweep, field, look),
                f"plot-{number}-{field}",
                first=number == 0 and position == 0,
            ),
            f"KL and {label}. Grey: best-of-n at its KL upper bound. Bars: 95% intervals over prompts. "
            "Pale points: another point of the same seed has no more KL and no lower "
            f"{label}.",
        )
        for position, (field, label) in enumerate(planes_of(sweep).items())
    ]


def markdown(
    sweeps: Sequence[Sweep], summaries: Sequence[list[str]], sheets: Sequence[list[ReportTable]]
) -> str:
    """The summaries and tables as Markdown."""
    lines = [f"# {TITLE}", "", TERMS, ""]
    for sweep, found, tables in zip(sweeps, summaries, sheets, strict=True):
        lines += [f"## {_plain(sweep.baseline.title)}", ""]
        lines += [*(f"- {_plain(line)}" for line in found), ""]
        for sheet in tables:
            marks = ("---:" if kind == "figure" else "---" for kind in sheet.column_kinds)
            lines += [f"### {_plain(sheet.title)}", "", _plain(sheet.caption), ""]
            lines += [_line(sheet.columns), f"| {' | '.join(marks)} |"]
            lines += [*(_line(row) for row in sheet.rows), ""]
    return "\n".join(lines)


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(text) for text in texts)} |"


def _plain(text: str) -> str:
    one_line = " ".join(text.split())
    return html.escape(one_line, quote=False).replace("|", "\\|")
