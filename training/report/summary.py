"""Summarizes the findings of a sweep in sentences."""

from __future__ import annotations

from training.report.text import WIN_RATE, percent_text, planes_of, seed_text, win_rate_points
from training.sweep import pareto
from training.sweep.pareto import BonCurvePoint, FrontierShare, Point
from training.sweep.records import Sweep

# The headline names only methods with at least this many points, if there are any: a single point on the
# frontier is already a share of 100%.
HEADLINE_POINTS = 4
SUMMARY_TARGETS = (4, 16)


def summarize(sweep: Sweep) -> list[str]:
    """The findings, one sentence each; fixed rules derive every sentence from the tables."""
    lines = [_cells_sentence(sweep)]
    if not sweep.measured:
        return [*lines, "No cell has figures, so the methods cannot be compared."]
    lines += [_methods_sentence(sweep), _spending_sentence(sweep)]
    for field, label in planes_of(sweep).items():
        points = list(sweep.points(field).values())
        if points:
            lines.append(_frontier_sentence(points, sweep.curve(field), label))
    points, curve = win_rate_points(sweep), sweep.curve(WIN_RATE)
    for num_samples in pareto.targets(points, curve):
        if num_samples in SUMMARY_TARGETS:
            lines.append(_target_sentence(points, curve, num_samples))
    return lines


def _cells_sentence(sweep: Sweep) -> str:
    counts = (
        f"{len(sweep.measured)} measured, {sweep.count('diverged')} diverged, "
        f"{sweep.count('failed')} failed"
    )
    if sweep.unfinished:
        counts += f", {len(sweep.unfinished)} without a record yet"
    return f"Cells: {counts}. Held-out prompts: {sweep.baseline.prompts}."


def _methods_sentence(sweep: Sweep) -> str:
    seeds = len({cell.seed for cell in sweep.measured.values()})
    methods = len({cell.method for cell in sweep.measured.values()})
    return f"Methods with figures: {methods}, over {seeds} seed{'s' if seeds > 1 else ''}."


def _spending_sentence(sweep: Sweep) -> str:
    best = pareto.kl_spending(sweep.points(WIN_RATE), sweep.settings())[0]
    return (
        f"Largest productive share of its KL: {best.method} with {best.setting}, "
        f"{seed_text(best.share, 2)}, worth best-of-{seed_text(best.equivalent_n, 2)}."
    )


def _frontier_sentence(points: list[Point], curve: list[BonCurvePoint], label: str) -> str:
    shares = pareto.frontier_shares(points, curve)
    least_points = min(HEADLINE_POINTS, max(share.points for share in shares))
    eligible = [share for share in shares if share.points >= least_points]
    best = [share for share in eligible if share.share.mean == eligible[0].share.mean]
    each = "; ".join(
        f"{share.method} with {percent_text(share.share)} of its {share.points} "
        f"point{'s' if share.points > 1 else ''}"
        for share in best
    )
    left = sum(share.share_with_curve.mean > 0 for share in shares)
    return (
        f"Most often on the frontier of KL and {label}"
        f"{_eligible_phrase(eligible, shares, least_points)}: {each}. Beside best-of-n at its KL bound, "
        f"{left} of {len(shares)} methods keep a point on it."
    )


def _eligible_phrase(
    eligible: list[FrontierShare], shares: list[FrontierShare], least_points: int
) -> str:
    if len(eligible) == len(shares):
        return ""
    count = "1 method" if len(eligible) == 1 else f"{len(eligible)} methods"
    return f" (of the {count} with at least {least_points} points)"


def _target_sentence(points: list[Point], curve: list[BonCurvePoint], num_samples: int) -> str:
    closest = pareto.target_comparisons(points, curve, num_samples)[0]
    best = next(c for c in curve if c.n == num_samples)
    return (
        f"Closest to best-of-{num_samples}'s win rate of {best.value:.3f} among those trained "
        f"towards it: {closest.method}, {seed_text(closest.win_rate, 3)} at "
        f"{seed_text(closest.kl_ratio, 2)} times best-of-{num_samples}'s KL bound."
    )
