"""Plots win rate and reward against KL: the frontier of best-of-n and the tuned policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from vbon.storage.evaluation_record import MethodRow

# Fixed ids and no date, so that the same figures give the same file.
_SVG = {"svg.hashsalt": "vbon", "svg.fonttype": "none"}


_CURVE_METHODS = {"reference", "best-of-n"}
_CURVE_COLOUR = "#4477aa"
_POLICY_COLOURS = ("#cc6677", "#228833", "#aa3377", "#ccbb44", "#66ccee")


def draw_frontier(rows: list[MethodRow], num_samples: int, directory: Path) -> list[Path]:
    """Write ``frontier.png`` and ``frontier.svg``; the curve is best-of-n at its KL *upper bound*."""
    with mpl.rc_context(_SVG):
        figure = Figure(figsize=(10.5, 4.4), layout="constrained")
        win_rate, reward = figure.subplots(1, 2)
        _draw_panel(win_rate, rows, num_samples, "win_rate", "win rate against the reference")
        _draw_panel(reward, rows, num_samples, "reward", "mean reward")
        win_rate.legend(loc="lower right", frameon=False)
        paths = [directory / "frontier.png", directory / "frontier.svg"]
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _draw_panel(axes: Any, rows: list[MethodRow], num_samples: int, field: str, label: str) -> None:
    _draw_curve(axes, [row for row in rows if row.method in _CURVE_METHODS], num_samples, field)
    _draw_policies(axes, [row for row in rows if row.method not in _CURVE_METHODS], field)
    axes.set_xlabel("KL from the reference policy, nats")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(axes: Any, rows: list[MethodRow], num_samples: int, field: str) -> None:
    kl = [row.kl_nats.mean for row in rows]
    values = [getattr(row, field) for row in rows]
    axes.plot(
        kl,
        [value.mean for value in values],
        "o-",
        color=_CURVE_COLOUR,
        ms=3.5,
        label="best-of-n (KL: upper bound)",
    )
    axes.fill_between(
        kl,
        [value.low for value in values],
        [value.high for value in values],
        color=_CURVE_COLOUR,
        alpha=0.18,
        lw=0,
    )
    for row, value in zip(rows, values, strict=True):
        axes.annotate(
            f"n={row.n}",
            (row.kl_nats.mean, value.mean),
            xytext=(4, -11),
            textcoords="offset points",
            fontsize=7,
            fontweight="bold" if row.n == num_samples else "normal",
        )


def _draw_policies(axes: Any, rows: list[MethodRow], field: str) -> None:
    for i, row in enumerate(rows):
        kl, value = row.kl_nats, getattr(row, field)
        axes.errorbar(
            kl.mean,
            value.mean,
            xerr=[[kl.mean - kl.low], [kl.high - kl.mean]],
            yerr=[[value.mean - value.low], [value.high - value.mean]],
            fmt="D",
            ms=5,
            capsize=2.5,
            color=_POLICY_COLOURS[i % len(_POLICY_COLOURS)],
            label=row.method,
        )
