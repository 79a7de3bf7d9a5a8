"""The tables that compare a sweep's methods."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from training.report.cell_tables import cells_sheet, settings_sheet
from training.report.text import (
    WIN_RATE,
    figures,
    percent,
    planes_of,
    seed_range,
    span,
    win_points,
)
from training.sweep import pareto as tables
from training.sweep.records import Sweep
from vbon.report_html import ReportTable

COSTS = {
    "samples_drawn": "samples drawn",
    "sequences_trained": "sequences trained",
    "tokens_drawn": "tokens drawn",
    "training_seconds": "training, s",
    "sample_seconds": "of it drawing, s",
}


def sheets(sweep: Sweep) -> list[ReportTable]:
    """Every table of one sweep; those that need a measured cell are left out when there is none."""
    result = [_curve_sheet(sweep)]
    if sweep.measured:
        result += pareto_sheets(sweep)
        result += target_sheets(sweep)
        result += [_efficiency_sheet(sweep), _cost_sheet(sweep)]
    return [*result, cells_sheet(sweep), settings_sheet(sweep)]


def pareto_sheets(sweep: Sweep) -> list[ReportTable]:
    """Frontier shares, one table a plane."""
    result = []
    for field, label in planes_of(sweep).items():
        points = list(sweep.points(field).values())
        if not points:
            continue
        rows = tables.frontier_shares(points, sweep.curve(field))
        result.append(
            ReportTable(
                key=f"pareto_{field}",
                title=f"On the frontier of KL and {label}",
                caption="Share of a method's points that no other tuned point of the same seed "
                f"dominates (no more KL and no lower {label}, one of them strictly), mean over "
                "seeds (smallest to largest). With best-of-n: the share left when the best-of-n "
                "curve, at its KL upper bound, competes too. Of the frontier: the method's part of "
                "the frontier's points. Diverged and failed cells are left out.",
                columns=(
                    "method",
                    "points",
                    "on the frontier",
                    "share of its points",
                    "with best-of-n",
                    "of the frontier",
                ),
                rows=tuple(
                    (
                        r.method,
                        str(r.points),
                        str(r.on_frontier),
                        percent(r.share),
                        percent(r.share_with_curve),
                        percent(r.of_frontier),
                    )
                    for r in rows
                ),
                data=[asdict(r) for r in rows],
            )
        )
    return result


def target_sheets(sweep: Sweep) -> list[ReportTable]:
    """Methods trained towards N beside best-of-N, one table an N that was measured."""
    points, curve = win_points(sweep), sweep.curve(WIN_RATE)
    result = []
    for num_samples in tables.targets(points, curve):
        best = next(c for c in curve if c.n == num_samples)
        rows = tables.target_comparisons(points, curve, num_samples)
        result.append(
            ReportTable(
                key=f"target_{num_samples}",
                title=f"Trained towards best-of-{num_samples}",
                caption=f"Best-of-{num_samples} itself: win rate {best.value:.3f} at no more than "
                f"{best.kl:.3f} nats. Ratios are the method's over best-of-{num_samples}'s (for "
                "KL, over that bound). Mean over seeds (smallest to largest), closest first.",
                columns=(
                    "method",
                    "points",
                    "win rate",
                    "of best-of-N's",
                    "KL, nats",
                    "of best-of-N's bound",
                ),
                rows=tuple(
                    (
                        r.method,
                        str(r.points),
                        seed_range(r.win_rate, 3),
                        seed_range(r.win_ratio, 2),
                        seed_range(r.kl, 2),
                        seed_range(r.kl_ratio, 2),
                    )
                    for r in rows
                ),
                data={
                    "n": num_samples,
                    "best_of_n": asdict(best),
                    "rows": [asdict(r) for r in rows],
                },
            )
        )
    return result


def _curve_sheet(sweep: Sweep) -> ReportTable:
    planes = planes_of(sweep)
    rows = sweep.curve_rows()
    return ReportTable(
        key="best_of_n",
        title="Reference and best-of-n",
        caption="Mean [95% interval over prompts]. Best-of-n's KL is the upper bound "
        "log n - (n-1)/n, not its value.",
        columns=("", "KL, nats", *planes.values()),
        rows=tuple(
            ("reference" if r.n == 1 else f"best-of-{r.n}",
             "0" if r.n == 1 else f"<= {r.kl_nats.mean:.3f}", *figures(r, planes))
            for r in rows
        ),
        data=[r.model_dump() for r in rows],
    )  # fmt: skip


def _efficiency_sheet(sweep: Sweep) -> ReportTable:
    results = tables.efficiencies(win_points(sweep), sweep.curve(WIN_RATE))
    rows = tables.method_efficiencies(results)
    return ReportTable(
        key="efficiency",
        title="Win rate for the KL spent",
        caption="A point's win rate over best-of-n's at the same KL (bound); median over the "
        "method's points (smallest to largest). 1 is as good as best-of-n; so is a policy that never "
        "moved, so read it beside the plots. Beyond: points past the last measured n, where "
        "n/(n+1) scaled to meet that point stands in.",
        columns=("method", "points", "of best-of-n's at the same KL", "beyond"),
        rows=tuple(
            (r.method, str(r.ratio.count),
             span(r.ratio.median, r.ratio.low, r.ratio.high, "{:.3f}"),
             str(r.beyond))
            for r in rows
        ),
        data=[asdict(r) for r in rows],
    )  # fmt: skip


def _cost_sheet(sweep: Sweep) -> ReportTable:
    data = []
    for method in dict.fromkeys(cell.cell.variant for cell in sweep.measured.values()):
        costs = [c.cost for c in sweep.measured.values() if c.cell.variant == method and c.cost]
        medians = {f: float(np.median([getattr(c, f) for c in costs])) for f in COSTS if costs}
        data.append({"method": method, "points": len(costs), **medians})
    cached = sorted({cell.cost.cached_samples for cell in sweep.measured.values() if cell.cost})
    return ReportTable(
        key="cost",
        title="Cost of a checkpoint",
        caption="Median over the method's cells. Samples and tokens drawn are those drawn while "
        "training; the cached reference samples ("
        + (" or ".join(f"{c:,}" for c in cached) or "none")
        + ") come once and are shared by all cells, so they stand in no row.",
        columns=("method", "cells", *COSTS.values()),
        rows=tuple(
            (str(row["method"]), str(row["points"]),
             *(f"{row[f]:,.0f}" if f in row else "-" for f in COSTS))
            for row in data
        ),
        data={"cached_samples": cached, "rows": data},
    )  # fmt: skip
