"""Draws the (KL, win rate) and (KL, reward) frontier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from vbon.storage.evaluation_record import MethodRow

# Fixed ids and no date: the same numbers give the same file.
_SVG = {"svg.hashsalt": "vbon", "svg.fonttype": "none"}


def draw_frontier(rows: list[MethodRow], num_samples: int, directory: Path) -> list[Path]:
    """``frontier.png`` and ``frontier.svg``; the curve is best-of-n at its KL *upper bound*."""
    with mpl.rc_context(_SVG):
        figure = Figure(figsize=(10.5, 4.4), layout="constrained")
        panels = figure.subplots(1, 2)
        _panel(panels[0], rows, num_samples, "win_rate", "win rate against the reference")
        _panel(panels[1], rows, num_samples, "reward", "mean reward")
        panels[0].legend(loc="lower right", frameon=False)
        paths = [directory / "frontier.png", directory / "frontier.svg"]
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _panel(axes: Any, rows: list[MethodRow], num_samples: int, field: str, label: str) -> None:
    curve = [row for row in rows if row.method in {"reference", "best-of-n"}]
    kl = [row.kl_nats.mean for row in curve]
    values = [getattr(row, field) for row in curve]
    axes.plot(kl, [v.mean for v in values], "o-", color="#4477aa", ms=3.5,
              label="best-of-n (KL: upper bound)")  # fmt: skip
    axes.fill_between(kl, [v.low for v in values], [v.high for v in values],
                      color="#4477aa", alpha=0.18, lw=0)  # fmt: skip
    for row, value in zip(curve, values, strict=True):
        bold = "bold" if row.n == num_samples else "normal"
        axes.annotate(f"n={row.n}", (row.kl_nats.mean, value.mean), xytext=(4, -11),
                      textcoords="offset points", fontsize=7, fontweight=bold)  # fmt: skip
    colours = ("#cc6677", "#228833", "#aa3377", "#ccbb44", "#66ccee")
    tuned = [row for row in rows if row.method not in {"reference", "best-of-n"}]
    for i, row in enumerate(tuned):
        value, distance = getattr(row, field), row.kl_nats
        axes.errorbar(
            distance.mean, value.mean,
            xerr=[[distance.mean - distance.low], [distance.high - distance.mean]],
            yerr=[[value.mean - value.low], [value.high - value.mean]],
            fmt="D", ms=5, capsize=2.5, color=colours[i % len(colours)], label=row.method,
        )  # fmt: skip
    axes.set_xlabel("KL from the reference policy, nats")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
