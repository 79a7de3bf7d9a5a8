"""The tables that compare the methods of a sweep."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from training.report.cell_tables import cells_table, settings_table
from training.report.text import (
    WIN_RATE,
    equal_terms_text,
    percent_text,
    plane_texts,
    planes_of,
    range_text,
    seed_text,
    share_text,
    spending_texts,
    win_rate_points,
)
from training.sweep import pareto
from training.sweep.equal_shares import equal_shares
from training.sweep.pareto import BonCurvePoint, Point
from training.sweep.records import Sweep
from vbon.report_html import ReportTable

COSTS = {
    "samples_drawn": "samples drawn",
    "sequences_trained": "sequences trained",
    "tokens_drawn": "tokens drawn",
    "training_seconds": "training, s",
    "sample_seconds": "of which sampling, s",
}


def sweep_tables(sweep: Sweep) -> list[ReportTable]:
    """All tables of one sweep; those that compare measured cells only if there are any."""
    tables = [_curve_table(sweep)]
    if sweep.measured:
        tables += [productive_table(sweep), *pareto_tables(sweep), *target_tables(sweep)]
        tables += [_efficiency_table(sweep), _cost_table(sweep)]
    return [*tables, cells_table(sweep), settings_table(sweep)]


def _curve_table(sweep: Sweep) -> ReportTable:
    planes = planes_of(sweep)
    rows = [row for row in sweep.curve_rows() if row.n & (row.n - 1) == 0]
    return ReportTable(
        key="best_of_n",
        title="Reference and best-of-n",
        caption="Mean [95% interval over prompts]. The KL of best-of-n is the upper bound "
        "log n - (n-1)/n, not its exact value. Powers of two; report.json has every measured n.",
        columns=("", "KL, nats", *planes.values()),
        rows=tuple(
            (
                "reference" if row.n == 1 else f"best-of-{row.n}",
                "0" if row.n == 1 else f"<= {row.kl_nats.mean:.3f}",
                *plane_texts(row, planes),
            )
            for row in rows
        ),
        data=[row.model_dump() for row in sweep.curve_rows()],
    )


def productive_table(sweep: Sweep) -> ReportTable:
    """The equivalent n and the productive share of every method and setting, the highest share first."""
    rows = pareto.kl_spending(sweep.points(WIN_RATE), sweep.settings(), sweep.prompt_figures())
    return ReportTable(
        key="productive_share",
        title="What the KL buys",
        caption="Equivalent n: the n of best-of-n that has the checkpoint's win rate. Productive share: "
        "the KL of best-of-n at that win rate, divided by the checkpoint's KL; 0 for a policy that moved "
        "for nothing or whose win rate may be one half, about 1 at most. Mean over seeds [95% interval "
        "over training seeds, prompts and evaluation draws together], or (smallest to largest seed) for "
        "records without figures of single prompts.",
        columns=("method", "setting", "seeds", "equivalent n", "productive share", "win rate"),
        rows=tuple(
            (
                row.method,
                row.setting,
                str(row.share.seeds),
                *spending_texts(row),
            )
            for row in rows
        ),
        data=[asdict(row) for row in rows],
    )


def pareto_tables(sweep: Sweep) -> list[ReportTable]:
    """The frontier shares of the methods, one table per plane that has points."""
    tables = []
    for field, label in planes_of(sweep).items():
        points = list(sweep.points(field).values())
        if points:
            tables.append(_equal_share_table(sweep, field, label, points))
            tables.append(_pareto_table(field, label, points, sweep.curve(field)))
    return tables


def _equal_share_table(sweep: Sweep, field: str, label: str, points: list[Point]) -> ReportTable:
    shares = equal_shares(points, sweep.places(field))
    return ReportTable(
        key=f"equal_shares_{field}",
        title=f"On the frontier of KL and {label}, with equal grids and seeds",
        caption=f"{equal_terms_text(shares[0])} Share: the probability that a point of the method is then "
        "dominated by no other [95% interval over seeds and prompts, at least as wide as the number of "
        "points demands]. Distinguishable: whether the share differs from the largest at the 5% level.",
        columns=("method", "share of its points", "distinguishable from the largest"),
        rows=tuple(
            (
                share.method,
                share_text(share.share),
                {None: "-", True: "yes", False: "no"}[share.leads],
            )
            for share in shares
        ),
        data=[asdict(share) for share in shares],
    )


def _pareto_table(
    field: str, label: str, points: list[Point], curve: list[BonCurvePoint]
) -> ReportTable:
    shares = pareto.frontier_shares(points, curve)
    return ReportTable(
        key=f"pareto_{field}",
        title=f"On the frontier of KL and {label}, with every point",
        caption="Dense grids compete with themselves and a single point is on the frontier or not, so "
        "compare methods by the table above. Share of its points: the share of a method's points that no "
        f"other tuned point of the same seed dominates (no more KL and no lower {label}, one of them "
        "strictly); mean over seeds (smallest to largest). With best-of-n: the same share when "
        "best-of-n, at its KL upper bound, competes as well; between two measured n a coin chooses one "
        "of them. Of the frontier: the method's share of all points on the frontier. Diverged and failed "
        "cells are left out.",
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
                share.method,
                str(share.points),
                str(share.on_frontier),
                percent_text(share.share),
                percent_text(share.share_with_curve),
                percent_text(share.of_frontier),
            )
            for share in shares
        ),
        data=[asdict(share) for share in shares],
    )


def target_tables(sweep: Sweep) -> list[ReportTable]:
    """The methods trained towards N beside best-of-N, one table per measured N."""
    points, curve = win_rate_points(sweep), sweep.curve(WIN_RATE)
    return [_target_table(n, points, curve) for n in pareto.targets(points, curve)]


def _target_table(num_samples: int, points: list[Point], curve: list[BonCurvePoint]) -> ReportTable:
    best = next(c for c in curve if c.n == num_samples)
    comparisons = pareto.target_comparisons(points, curve, num_samples)
    return ReportTable(
        key=f"target_{num_samples}",
        title=f"Trained towards best-of-{num_samples}",
        caption=f"Best-of-{num_samples} itself has win rate {best.value:.3f} at no more than "
        f"{best.kl:.3f} nats. Ratios divide the method's figure by that of best-of-{num_samples} "
        "(for KL, by that bound). Mean over seeds (smallest to largest), closest win rate first.",
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
                comparison.method,
                str(comparison.points),
                seed_text(comparison.win_rate, 3),
                seed_text(comparison.win_ratio, 2),
                seed_text(comparison.kl, 2),
                seed_text(comparison.kl_ratio, 2),
            )
            for comparison in comparisons
        ),
        data={
            "n": num_samples,
            "best_of_n": asdict(best),
            "rows": [asdict(comparison) for comparison in comparisons],
        },
    )


def _efficiency_table(sweep: Sweep) -> ReportTable:
    results = pareto.efficiencies(win_rate_points(sweep), sweep.curve(WIN_RATE))
    methods = pareto.method_efficiencies(results)
    return ReportTable(
        key="efficiency",
        title="Win rate for the KL spent",
        caption="A point's win rate divided by that of best-of-n at the same KL (bound); median over "
        "the method's points (smallest to largest). 1 equals best-of-n. A policy that never moved also "
        "has 1, so read this table beside the plots. Beyond: the number of points past the last measured "
        "n, where n/(n+1), scaled to meet the last point, replaces the measured win rate.",
        columns=("method", "points", "of best-of-n's at the same KL", "beyond"),
        rows=tuple(
            (
                method.method,
                str(method.ratio.count),
                range_text(method.ratio.median, method.ratio.low, method.ratio.high, "{:.3f}"),
                str(method.beyond),
            )
            for method in methods
        ),
        data=[asdict(method) for method in methods],
    )


def _cost_table(sweep: Sweep) -> ReportTable:
    measured = sweep.measured.values()
    data = []
    for method in dict.fromkeys(cell.method for cell in measured):
        costs = [c.cost for c in measured if c.method == method and c.cost]
        medians = {f: float(np.median([getattr(c, f) for c in costs])) for f in COSTS if costs}
        data.append({"method": method, "points": len(costs), **medians})
    cached = sorted({cell.cost.cached_samples for cell in measured if cell.cost})
    cached_text = " or ".join(f"{count:,}" for count in cached) or "none"
    return ReportTable(
        key="cost",
        title="Cost of a checkpoint",
        caption="Median over the method's cells. Samples and tokens drawn are those drawn during "
        f"training. The cached reference samples ({cached_text}) are drawn once and shared by all "
        "cells, so no row includes them.",
        columns=("method", "cells", *COSTS.values()),
        rows=tuple(
            (
                str(row["method"]),
                str(row["points"]),
                *(f"{row[f]:,.0f}" if f in row else "-" for f in COSTS),
            )
            for row in data
        ),
        data={"cached_samples": cached, "rows": data},
    )
