"""Draws the frontier of sweeps: interactive figures for the page, one picture for documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from training.report.text import interval, planes_of
from training.sweep.pareto import frontier_flags
from training.sweep.records import CellRecord, Sweep
from vbon.errors import ExportError
from vbon.report_html.page import COLOURS, markup_safe

# plotly's name, matplotlib's marker, filled or not, and a character for the legend.
MARKERS = (
    ("circle", "o", True, "●"), ("square", "s", True, "■"), ("diamond", "D", True, "◆"),
    ("triangle-up", "^", True, "▲"), ("triangle-down", "v", True, "▼"), ("star", "*", True, "★"),
    ("cross", "P", True, "✚"), ("circle-open", "o", False, "○"), ("square-open", "s", False, "□"),
    ("diamond-open", "D", False, "◇"), ("triangle-up-open", "^", False, "△"),
    ("triangle-down-open", "v", False, "▽"), ("star-open", "*", False, "☆"),
    ("triangle-left", "<", True, "◀"),
)  # fmt: skip
CURVE_COLOUR = "#808080"
CURVE_NAME = "best-of-n (KL: upper bound)"
KL_LABEL = "KL from the reference policy, nats"
_DIMMED = 0.4
# Fixed ids and no date: the same numbers give the same file.
_SVG = {"svg.hashsalt": "vbon", "svg.fonttype": "none"}


@dataclass(frozen=True, slots=True)
class Style:
    """How a method looks in every figure."""

    colour: str
    symbol: str
    marker: str
    filled: bool
    glyph: str


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """A colour and marker for each method; the pair is its own up to 14 methods."""
    return {
        method: Style(COLOURS[i % len(COLOURS)], *MARKERS[i % len(MARKERS)])
        for i, method in enumerate(methods)
    }


def page_figure(sweep: Sweep, field: str, look: dict[str, Style]) -> go.Figure:
    """(KL, ``field``) for the page; points off their seed's frontier are dimmed.

    Each trace's ``meta`` is its method's name, by which the page's legend hides it. Record texts
    are escaped: plotly takes markup in hover texts.
    """
    label = planes_of(sweep)[field]
    figure = go.Figure(layout={"template": "none"})
    rows = sweep.curve_rows()
    kl = [row.kl_nats.mean for row in rows]
    values = [getattr(row, field) for row in rows]
    figure.add_scatter(
        x=kl + kl[::-1], y=[v.high for v in values] + [v.low for v in values][::-1],
        fill="toself", fillcolor="rgba(128,128,128,0.2)", line={"width": 0}, mode="lines",
        hoverinfo="skip", meta=CURVE_NAME,
    )  # fmt: skip
    figure.add_scatter(
        x=kl, y=[v.mean for v in values], mode="lines+markers+text", name=CURVE_NAME,
        text=[f"n={row.n}" for row in rows], textposition="bottom right", meta=CURVE_NAME,
        line={"color": CURVE_COLOUR}, marker={"color": CURVE_COLOUR, "size": 5},
        hovertext=[f"best-of-{row.n}<br>KL at most {row.kl_nats.mean:.3f} nats"
                   f"<br>{label} {interval(v, 3)}" for row, v in zip(rows, values, strict=True)],
        hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip
    bars = {"type": "data", "symmetric": False, "thickness": 1, "width": 0}
    for method, cells, dimmed in _groups(sweep, field):
        style = look[method]
        place = [cell.row.kl_nats for cell in cells if cell.row]
        value = [getattr(cell.row, field) for cell in cells]
        figure.add_scatter(
            x=[k.mean for k in place], y=[v.mean for v in value], mode="markers",
            name=markup_safe(method), meta=method,
            error_x={**bars, "array": [k.high - k.mean for k in place],
                     "arrayminus": [k.mean - k.low for k in place]},
            error_y={**bars, "array": [v.high - v.mean for v in value],
                     "arrayminus": [v.mean - v.low for v in value]},
            marker={"color": style.colour, "symbol": style.symbol, "size": 10},
            opacity=_DIMMED if dimmed else 1.0,
            hovertext=[_hover(cell, field, label) for cell in cells],
            hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        showlegend=False, height=430, autosize=True, hovermode="closest",
        margin={"l": 56, "r": 12, "t": 28, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        xaxis={"title": {"text": KL_LABEL}, "zeroline": False},
        yaxis={"title": {"text": label}, "zeroline": False},
    )  # fmt: skip
    return figure


def _hover(cell: CellRecord, field: str, label: str) -> str:
    assert cell.row is not None
    lines = [
        f"<b>{markup_safe(cell.cell.variant)}</b>",
        f"{markup_safe(cell.setting)}, seed {cell.cell.seed}",
        f"KL {interval(cell.row.kl_nats, 2)} nats",
        f"{label} {interval(getattr(cell.row, field), 3)}",
    ]
    if cell.checkpoint:
        lines.append(markup_safe(cell.checkpoint))
    return "<br>".join(lines)


def _groups(sweep: Sweep, field: str) -> list[tuple[str, list[CellRecord], bool]]:
    """Method, cells and whether they are dimmed, the dimmed groups first and so beneath."""
    points = sweep.points(field)
    flags = dict(zip(points, frontier_flags(list(points.values())), strict=True))
    groups: dict[tuple[bool, str], list[CellRecord]] = defaultdict(list)
    for name, point in points.items():
        groups[flags[name], point.method].append(sweep.cells[name])
    return [(method, groups[on, method], not on) for on, method in sorted(groups)]


def draw_sweeps(sweeps: Sequence[Sweep], look: dict[str, Style], directory: Path) -> list[Path]:
    """``frontier.png`` and ``frontier.svg``: two panels a line, the sweeps one below another.

    Raises:
        ExportError: if a file cannot be written; the previous one is untouched.
    """
    panels = [(sweep, field) for sweep in sweeps for field in planes_of(sweep)]
    lines = len(panels) // 2
    with mpl.rc_context(_SVG):
        figure = Figure(figsize=(10.5, 4.4 * lines + 0.07 * len(look) + 0.4), layout="constrained")
        for axes, (sweep, field) in zip(figure.subplots(lines, 2).flat, panels, strict=True):
            _panel(axes, sweep, field, look)
        handles = [Line2D([], [], color=CURVE_COLOUR, marker="o", ms=3.5)]
        handles += [
            Line2D(
                [], [], color=s.colour, marker=s.marker, ls="", mfc=s.colour if s.filled else "none"
            )
            for s in look.values()
        ]
        legend = figure.legend(
            handles, [CURVE_NAME, *look], loc="outside lower center", ncols=3, frameon=False,
            fontsize=8, title="Bars: 95% intervals over prompts. Pale: dominated within its seed.",
            title_fontsize=8,
        )  # fmt: skip
        for text in [*legend.get_texts(), *(axes.title for axes in figure.axes)]:
            text.set_parse_math(False)
        return [
            _save(figure, directory / "frontier.png", {"dpi": 150}),
            _save(figure, directory / "frontier.svg", {"metadata": {"Date": None}}),
        ]


def _panel(axes: Any, sweep: Sweep, field: str, look: dict[str, Style]) -> None:
    label = planes_of(sweep)[field]
    rows = sweep.curve_rows()
    kl = [row.kl_nats.mean for row in rows]
    values = [getattr(row, field) for row in rows]
    axes.plot(kl, [v.mean for v in values], "o-", color=CURVE_COLOUR, ms=3.5)
    axes.fill_between(kl, [v.low for v in values], [v.high for v in values],
                      color=CURVE_COLOUR, alpha=0.18, lw=0)  # fmt: skip
    for row, value in zip(rows, values, strict=True):
        axes.annotate(f"n={row.n}", (row.kl_nats.mean, value.mean), xytext=(4, -11),
                      textcoords="offset points", fontsize=7)  # fmt: skip
    for method, cells, dimmed in _groups(sweep, field):
        style = look[method]
        for cell in cells:
            assert cell.row is not None
            place, value = cell.row.kl_nats, getattr(cell.row, field)
            axes.errorbar(
                place.mean, value.mean,
                xerr=[[place.mean - place.low], [place.high - place.mean]],
                yerr=[[value.mean - value.low], [value.high - value.mean]],
                fmt=style.marker, ms=5, elinewidth=0.7, color=style.colour,
                mfc=style.colour if style.filled else "none", alpha=_DIMMED if dimmed else 1.0,
            )  # fmt: skip
    axes.set_title(f"{sweep.baseline.title}: {label}", fontsize=9)
    axes.set_xlabel(KL_LABEL)
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path, options: dict[str, Any]) -> Path:
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, format=path.suffix[1:], **options)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ExportError(f"could not write {path}: {error.strerror or error}") from error
    return path
