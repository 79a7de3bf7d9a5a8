"""What a sweep found, in plain words."""

from __future__ import annotations

from training.report.text import WIN_RATE, percent, planes_of, seed_range, win_points
from training.sweep import pareto as tables
from training.sweep.pareto import BonCurvePoint, Point
from training.sweep.records import Sweep

HEADLINE_POINTS = 4
SUMMARY_TARGETS = (4, 16)


def summary(sweep: Sweep) -> list[str]:
    """What was found, sentence by sentence; every sentence follows from the tables by rule."""
    statuses = f"{len(sweep.measured)} measured, {sweep.count('diverged')} diverged, "
    statuses += f"{sweep.count('failed')} failed"
    if sweep.unfinished:
        statuses += f", {len(sweep.unfinished)} without a record yet"
    lines = [f"Cells: {statuses}. Held-out prompts: {sweep.baseline.prompts}."]
    if not sweep.measured:
        return [*lines, "No cell has figures, so the methods cannot be compared."]
    seeds = len({cell.cell.seed for cell in sweep.measured.values()})
    methods = len({cell.cell.variant for cell in sweep.measured.values()})
    lines.append(f"Methods with figures: {methods}, over {seeds} seed{'s' if seeds > 1 else ''}.")
    for field, label in planes_of(sweep).items():
        points = list(sweep.points(field).values())
        if points:
            lines.append(_frontier_sentence(points, sweep.curve(field), label))
    points, curve = win_points(sweep), sweep.curve(WIN_RATE)
    for num_samples in tables.targets(points, curve):
        if num_samples in SUMMARY_TARGETS:
            lines.append(_target_sentence(points, curve, num_samples))
    return lines


def _among(ranged: list[tables.FrontierShare], rows: list[tables.FrontierShare], least: int) -> str:
    if len(ranged) == len(rows):
        return ""
    count = "1 method" if len(ranged) == 1 else f"{len(ranged)} methods"
    return f" (of the {count} with at least {least} points)"


def _frontier_sentence(points: list[Point], curve: list[BonCurvePoint], label: str) -> str:
    rows = tables.frontier_shares(points, curve)
    # One point on the frontier is 100% of one: a headline needs a method's range of N or beta.
    least = min(HEADLINE_POINTS, max(row.points for row in rows))
    ranged = [row for row in rows if row.points >= least]
    best = [row for row in ranged if row.share.mean == ranged[0].share.mean]
    each = "; ".join(
        f"{row.method} with {percent(row.share)} of its {row.points} "
        f"point{'s' if row.points > 1 else ''}"
        for row in best
    )
    left = sum(row.share_with_curve.mean > 0 for row in rows)
    return (
        f"Most often on the frontier of KL and {label}"
        f"{_among(ranged, rows, least)}: {each}. Beside best-of-n at its KL bound, "
        f"{left} of {len(rows)} methods keep a point on it."
    )


def _target_sentence(points: list[Point], curve: list[BonCurvePoint], num_samples: int) -> str:
    first = tables.target_comparisons(points, curve, num_samples)[0]
    best = next(c for c in curve if c.n == num_samples)
    return (
        f"Closest to best-of-{num_samples}'s win rate of {best.value:.3f} among those trained "
        f"towards it: {first.method}, {seed_range(first.win_rate, 3)} at "
        f"{seed_range(first.kl_ratio, 2)} times best-of-{num_samples}'s KL bound."
    )
