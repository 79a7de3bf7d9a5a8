"""The tables that compare the methods of a sweep."""

from __future__ import annotations

from dataclasses import asdict

from training.report.cell_tables import cells_table, settings_table
from training.report.spending_tables import cost_table, search_table, spending_tables
from training.report.text import (
    WIN_RATE,
    differs_text,
    equal_terms_text,
    percent_text,
    plane_texts,
    planes_of,
    range_text,
    share_text,
    win_rate_points,
)
from training.sweep import pareto
from training.sweep.equal_shares import equal_shares
from training.sweep.pareto import BonCurvePoint, Point
from training.sweep.records import Sweep
from vbon.report_html import ReportTable


def sweep_tables(sweep: Sweep) -> list[ReportTable]:
    """All tables of one sweep; those that compare measured cells only if there are any."""
    tables = [_curve_table(sweep)]
    if sweep.measured:
        tables += [*spending_tables([sweep]), *pareto_tables(sweep), _efficiency_table(sweep)]
        tables.append(cost_table([sweep]))
    if sweep.choices is not None:
        tables.append(search_table(sweep.choices))
    return [*tables, cells_table(sweep), settings_table(sweep)]


def _curve_table(sweep: Sweep) -> ReportTable:
    planes = planes_of(sweep)
    rows = [row for row in sweep.curve_rows() if row.n & (row.n - 1) == 0]
    return ReportTable(
        key="best_of_n",
        title="Reference and best-of-n",
        caption="Mean [95% interval over prompts]. The KL of best-of-n is the upper bound "
        "log n - (n-1)/n, not its exact value. Powers of two; report.json has every measured n.",
        columns=("method", "KL, nats", *planes.values()),
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
                differs_text(share.leads),
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
