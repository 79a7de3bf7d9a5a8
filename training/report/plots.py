"""Plots the frontier of sweeps: charts for the page, and a picture for documents."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from training.report.text import interval_text, planes_of
from training.sweep.pareto import frontier_flags
from training.sweep.records import CellRecord, Sweep
from vbon.errors import ExportError
from vbon.report_html.page import COLOURS

# The page's symbol, matplotlib's marker, whether it is filled, and the legend's character.
MARKERS = (
    ("circle", "o", True, "●"), ("square", "s", True, "■"), ("diamond", "D", True, "◆"),
    ("triangle-up", "^", True, "▲"), ("triangle-down", "v", True, "▼"), ("star", "*", True, "★"),
    ("cross", "P", True, "✚"), ("circle", "o", False, "○"), ("square", "s", False, "□"),
    ("diamond", "D", False, "◇"), ("triangle-up", "^", False, "△"),
    ("triangle-down", "v", False, "▽"), ("star", "*", False, "☆"),
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


def page_chart(sweep: Sweep, field: str, styles: Mapping[str, Style]) -> dict[str, Any]:
    """The plane (KL, ``field``) as ``charts.js`` draws it; points not on their seed's frontier are dimmed.

    The name of each series is its method, by which the page's legend hides it.
    """
    label = planes_of(sweep)[field]
    methods = [
        _method_series(method, cells, field, label, styles[method], dimmed=dimmed)
        for method, cells, dimmed in _groups(sweep, field)
    ]
    return {
        "label": f"KL and {label}: {sweep.baseline.title}",
        "x": {"label": KL_LABEL},
        "y": {"label": label},
        "series": [*_curve_series(sweep, field, label), *methods],
    }


def _n_label(n: int) -> str:
    """The label of a point of the curve; only powers of two have one, since labels of all would overlap."""
    return f"n={n}" if n & (n - 1) == 0 else ""


def _curve_series(sweep: Sweep, field: str, label: str) -> list[dict[str, Any]]:
    """Best-of-n's curve over the band of its intervals."""
    points = []
    for row in sweep.curve_rows():
        value = getattr(row, field)
        about = [f"best-of-{row.n}", f"KL at most {row.kl_nats.mean:.3f} nats"]
        about.append(f"{label} {interval_text(value, 3)}")
        ends = {"y_low": value.low, "y_high": value.high}
        point = {"x": row.kl_nats.mean, "y": value.mean, "text": _n_label(row.n), "size": 0.7}
        points.append(point | ends | {"about": "\n".join(about)})
    series = {"name": CURVE_NAME, "colour": CURVE_COLOUR, "symbol": None, "line": None}
    bare = [{key: p[key] for key in p if not key.startswith("y_")} for p in points]
    return [
        series | {"area": True, "points": points},
        series | {"symbol": "circle", "line": "solid", "points": bare},
    ]


def _method_series(
    method: str,
    cells: Sequence[CellRecord],
    field: str,
    label: str,
    style: Style,
    *,
    dimmed: bool,
) -> dict[str, Any]:
    kind = " ".join(["" if style.filled else "open", "dim" if dimmed else ""]).strip()
    points = []
    for cell in cells:
        assert cell.row is not None
        kl, value = cell.row.kl_nats, getattr(cell.row, field)
        points.append(
            {
                "x": kl.mean, "x_low": kl.low, "x_high": kl.high,
                "y": value.mean, "y_low": value.low, "y_high": value.high,
                "kind": kind, "about": _about(cell, field, label),
            }
        )  # fmt: skip
    return {
        "name": method,
        "colour": style.colour,
        "symbol": style.symbol,
        "line": None,
        "points": points,
    }


def _about(cell: CellRecord, field: str, label: str) -> str:
    assert cell.row is not None
    lines = [
        cell.method,
        f"{cell.setting}, seed {cell.seed}",
        f"KL {interval_text(cell.row.kl_nats, 2)} nats",
        f"{label} {interval_text(getattr(cell.row, field), 3)}",
        *([cell.checkpoint] if cell.checkpoint else []),
    ]
    return "\n".join(lines)


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
