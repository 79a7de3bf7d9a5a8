"""The report as one HTML file that loads nothing, and the same tables as Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence

from training.report.plots import CURVE_COLOUR, CURVE_NAME, Style, page_figure
from training.report.text import planes_of
from training.sweep.records import Sweep, methods_of
from vbon.report_html import ReportTable, aligned, fill_page, html_table, plot_html

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
    titles = [html.escape(sweep.baseline.title) for sweep in sweeps]
    entries = "".join(f'<li><a href="#sweep-{i}">{t}</a></li>' for i, t in enumerate(titles))
    sections = "\n".join(
        _section(i, sweep, summaries[i], sheets[i], look) for i, sweep in enumerate(sweeps)
    )
    contents = f"<nav aria-label='Sweeps'><ul>{entries}</ul></nav>" if len(sweeps) > 1 else ""
    return fill_page(title=TITLE, terms=TERMS, contents=contents, main=sections)


def _section(
    number: int, sweep: Sweep, lines: list[str], sheets: list[ReportTable], look: dict[str, Style]
) -> str:
    found = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    plots = "".join(
        _plot(sweep, field, look, f"plot-{number}-{field}", first=number == 0 and i == 0)
        for i, field in enumerate(planes_of(sweep))
    )
    tables = "".join(html_table(sheet) for sheet in sheets)
    return (
        f'<section id="sweep-{number}"><h2>{html.escape(sweep.baseline.title)}</h2>'
        f"<h3>What was found</h3><ul>{found}</ul><h3>Frontier</h3>{_legend(sweep, look)}"
        f'<div class="plots">{plots}</div>{tables}</section>'
    )


def _legend(sweep: Sweep, look: dict[str, Style]) -> str:
    drawn = {cell.cell.variant for cell in sweep.measured.values()}
    entries = [(CURVE_NAME, CURVE_COLOUR, "\N{EM DASH}")]
    entries += [(m, look[m].colour, look[m].glyph) for m in methods_of([sweep]) if m in drawn]
    boxes = "".join(
        f'<label><input type="checkbox" checked data-method="{html.escape(name)}">'
        f'<span class="glyph" style="color:{colour}" aria-hidden="true">{glyph}&#xfe0e;</span>'
        f"{html.escape(name)}</label>"
        for name, colour, glyph in entries
    )
    return f'<fieldset class="legend"><legend>Show</legend>{boxes}</fieldset>'


def _plot(sweep: Sweep, field: str, look: dict[str, Style], name: str, *, first: bool) -> str:
    label = html.escape(planes_of(sweep)[field])
    drawn = plot_html(page_figure(sweep, field, look), name, first=first)
    return (
        f"<figure>{drawn}<figcaption>KL and {label}. Grey: best-of-n at its KL upper bound. "
        "Bars: 95% intervals over prompts. Pale points: another point of the same seed has no more "
        f"KL and no lower {label}.</figcaption></figure>"
    )


def markdown(
    sweeps: Sequence[Sweep], summaries: Sequence[list[str]], sheets: Sequence[list[ReportTable]]
) -> str:
    """The summaries and tables as Markdown."""
    lines = [f"# {TITLE}", "", TERMS, ""]
    for sweep, found, tables in zip(sweeps, summaries, sheets, strict=True):
        lines += [f"## {_plain(sweep.baseline.title)}", ""]
        lines += [*(f"- {_plain(line)}" for line in found), ""]
        for sheet in tables:
            marks = ("---:" if kind == "figure" else "---" for kind in aligned(sheet))
            lines += [f"### {_plain(sheet.title)}", "", _plain(sheet.caption), ""]
            lines += [_line(sheet.columns), f"| {' | '.join(marks)} |"]
            lines += [*(_line(row) for row in sheet.rows), ""]
    return "\n".join(lines)


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(text) for text in texts)} |"


def _plain(text: str) -> str:
    one_line = " ".join(text.split())
    return html.escape(one_line, quote=False).replace("|", "\\|")
