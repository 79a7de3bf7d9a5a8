"""Plots the frontier of sweeps: interactive figures for the page, and a picture for documents."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from training.report.text import interval_text, planes_of
from training.sweep.pareto import frontier_flags
from training.sweep.records import CellRecord, Sweep
from vbon.errors import ExportError
from vbon.report_html.page import COLOURS, markup_safe

# Plotly's symbol, matplotlib's marker, whether it is filled, and the legend's character.
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
# Fixed ids and no date, so that the same figures give the same file.
_SVG = {"svg.hashsalt": "vbon", "svg.fonttype": "none"}


@dataclass(frozen=True, slots=True)
class Style:
    """The look of a method, the same in every figure."""

    colour: str
    symbol: str
    marker: str
    filled: bool
    glyph: str

    @property
    def face_colour(self) -> str:
        """The fill colour for matplotlib; ``none`` for open markers."""
        return self.colour if self.filled else "none"


def method_styles(methods: Sequence[str]) -> dict[str, Style]:
    """The colour and marker of each method; no two methods share both, up to 98 methods."""
    turn = math.lcm(len(COLOURS), len(MARKERS))
    return {
        # After every turn, in which all pairs of i mod 7 and i mod 14 have been used, markers move by one.
        method: Style(COLOURS[i % len(COLOURS)], *MARKERS[(i + i // turn) % len(MARKERS)])
        for i, method in enumerate(methods)
    }


def page_figure(sweep: Sweep, field: str, styles: Mapping[str, Style]) -> go.Figure:
    """The plane (KL, ``field``) for the page; points that are not on their seed's frontier are dimmed.

    The ``meta`` of each trace is the name of its method, by which the page's legend hides it. Texts from
    records are escaped, since plotly interprets markup in hover texts.
    """
    label = planes_of(sweep)[field]
    figure = go.Figure(layout={"template": "none"})
    _add_curve(figure, sweep, field, label)
    for method, cells, dimmed in _groups(sweep, field):
        _add_method(figure, method, cells, field, label, styles[method], dimmed=dimmed)
    figure.update_layout(
        showlegend=False,
        height=430,
        autosize=True,
        hovermode="closest",
        margin={"l": 56, "r": 12, "t": 28, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={"title": {"text": KL_LABEL}, "zeroline": False},
        yaxis={"title": {"text": label}, "zeroline": False},
    )
    return figure


def _n_label(n: int) -> str:
    """The label of a point of the curve; only powers of two have one, since labels of all would overlap."""
    return f"n={n}" if n & (n - 1) == 0 else ""


def _add_curve(figure: go.Figure, sweep: Sweep, field: str, label: str) -> None:
    """Add best-of-n's curve over the band of its intervals."""
    rows = sweep.curve_rows()
    kl = [row.kl_nats.mean for row in rows]
    values = [getattr(row, field) for row in rows]
    figure.add_scatter(
        x=kl + kl[::-1],
        y=[v.high for v in values] + [v.low for v in values][::-1],
        fill="toself",
        fillcolor="rgba(128,128,128,0.2)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        meta=CURVE_NAME,
    )
    figure.add_scatter(
        x=kl,
        y=[v.mean for v in values],
        mode="lines+markers+text",
        name=CURVE_NAME,
        text=[_n_label(row.n) for row in rows],
        textposition="bottom right",
        meta=CURVE_NAME,
        line={"color": CURVE_COLOUR},
        marker={"color": CURVE_COLOUR, "size": 5},
        hovertext=[
            f"best-of-{row.n}<br>KL at most {row.kl_nats.mean:.3f} nats"
            f"<br>{label} {interval_text(v, 3)}"
            for row, v in zip(rows, values, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _add_method(
    figure: go.Figure,
    method: str,
    cells: Sequence[CellRecord],
    field: str,
    label: str,
    style: Style,
    *,
    dimmed: bool,
) -> None:
    bars = {"type": "data", "symmetric": False, "thickness": 1, "width": 0}
    kl = [cell.row.kl_nats for cell in cells if cell.row]
    values = [getattr(cell.row, field) for cell in cells]
    figure.add_scatter(
        x=[k.mean for k in kl],
        y=[v.mean for v in values],
        mode="markers",
        name=markup_safe(method),
        meta=method,
        error_x={
            **bars,
            "array": [k.high - k.mean for k in kl],
            "arrayminus": [k.mean - k.low for k in kl],
        },
        error_y={
            **bars,
            "array": [v.high - v.mean for v in values],
            "arrayminus": [v.mean - v.low for v in values],
        },
        marker={"color": style.colour, "symbol": style.symbol, "size": 10},
        opacity=_DIMMED if dimmed else 1.0,
        hovertext=[_hover_text(cell, field, label) for cell in cells],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _hover_text(cell: CellRecord, field: str, label: str) -> str:
    assert cell.row is not None
    lines = [
        f"<b>{markup_safe(cell.method)}</b>",
        f"{markup_safe(cell.setting)}, seed {cell.seed}",
        f"KL {interval_text(cell.row.kl_nats, 2)} nats",
        f"{label} {interval_text(getattr(cell.row, field), 3)}",
    ]
    if cell.checkpoint:
        lines.append(markup_safe(cell.checkpoint))
    return "<br>".join(lines)


def _groups(sweep: Sweep, field: str) -> list[tuple[str, list[CellRecord], bool]]:
    """Each method's cells, split into dimmed and other ones; dimmed groups first, to be drawn below."""
    points = sweep.points(field)
    flags = dict(zip(points, frontier_flags(list(points.values())), strict=True))
    groups: dict[tuple[bool, str], list[CellRecord]] = defaultdict(list)
    for name, point in points.items():
        groups[flags[name], point.method].append(sweep.cells[name])
    return [
        (method, groups[on_frontier, method], not on_frontier)
        for on_frontier, method in sorted(groups)
    ]


def draw_sweeps(
    sweeps: Sequence[Sweep], styles: Mapping[str, Style], directory: Path
) -> list[Path]:
    """Write ``frontier.png`` and ``frontier.svg``: two panels per line, one sweep below another.

    Raises:
        ExportError: a file could not be written; its previous version is untouched.
    """
    panels = [(sweep, field) for sweep in sweeps for field in planes_of(sweep)]
    lines = len(panels) // 2
    height = 4.4 * lines + 0.07 * len(styles) + 0.4
    with mpl.rc_context(_SVG):
        figure = Figure(figsize=(10.5, height), layout="constrained")
        for axes, (sweep, field) in zip(figure.subplots(lines, 2).flat, panels, strict=True):
            _draw_panel(axes, sweep, field, styles)
        _draw_legend(figure, styles)
        png = _save(figure, directory / "frontier.png", {"dpi": 150})
        figure.set_layout_engine("none")  # the layout of the first file serves the second too
        return [png, _save(figure, directory / "frontier.svg", {"metadata": {"Date": None}})]


def _draw_legend(figure: Any, styles: Mapping[str, Style]) -> None:
    handles = [Line2D([], [], color=CURVE_COLOUR, marker="o", ms=3.5)]
    handles += [
        Line2D([], [], color=s.colour, marker=s.marker, ls="", mfc=s.face_colour)
        for s in styles.values()
    ]
    legend = figure.legend(
        handles,
        [CURVE_NAME, *styles],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
        title="Bars: 95% intervals over prompts. Pale: dominated within its seed.",
        title_fontsize=8,
    )
    # Names of methods and sweeps may contain "$", which matplotlib would take for mathematics.
    for text in [*legend.get_texts(), *(axes.title for axes in figure.axes)]:
        text.set_parse_math(False)


def _draw_panel(axes: Any, sweep: Sweep, field: str, styles: Mapping[str, Style]) -> None:
    _draw_curve(axes, sweep, field)
    for method, cells, dimmed in _groups(sweep, field):
        for cell in cells:
            _draw_cell(axes, cell, field, styles[method], dimmed=dimmed)
    label = planes_of(sweep)[field]
    axes.set_title(f"{sweep.baseline.title}: {label}", fontsize=9)
    axes.set_xlabel(KL_LABEL)
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(axes: Any, sweep: Sweep, field: str) -> None:
    rows = sweep.curve_rows()
    kl = [row.kl_nats.mean for row in rows]
    values = [getattr(row, field) for row in rows]
    axes.plot(kl, [v.mean for v in values], "o-", color=CURVE_COLOUR, ms=3.5)
    axes.fill_between(
        kl,
        [v.low for v in values],
        [v.high for v in values],
        color=CURVE_COLOUR,
        alpha=0.18,
        lw=0,
    )
    for row, value in zip(rows, values, strict=True):
        axes.annotate(
            _n_label(row.n),
            (row.kl_nats.mean, value.mean),
            xytext=(4, -11),
            textcoords="offset points",
            fontsize=7,
        )


def _draw_cell(axes: Any, cell: CellRecord, field: str, style: Style, *, dimmed: bool) -> None:
    assert cell.row is not None
    kl, value = cell.row.kl_nats, getattr(cell.row, field)
    axes.errorbar(
        kl.mean,
        value.mean,
        xerr=[[kl.mean - kl.low], [kl.high - kl.mean]],
        yerr=[[value.mean - value.low], [value.high - value.mean]],
        fmt=style.marker,
        ms=5,
        elinewidth=0.7,
        color=style.colour,
        mfc=style.face_colour,
        alpha=_DIMMED if dimmed else 1.0,
    )


def _save(figure: Any, path: Path, options: dict[str, Any]) -> Path:
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, format=path.suffix[1:], **options)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ExportError(f"could not write {path}: {error.strerror or error}") from error
    return path
