"""Summarizes the findings of a sweep in sentences."""

from __future__ import annotations

from training.report.text import (
    WIN_RATE,
    planes_of,
    seed_text,
    share_text,
    spending_texts,
    win_rate_points,
)
from training.sweep import pareto
from training.sweep.equal_shares import equal_shares
from training.sweep.pareto import BonCurvePoint, Point
from training.sweep.records import Sweep

SUMMARY_TARGETS = (4, 16)


def summarize(sweep: Sweep) -> list[str]:
    """The findings, one sentence each; fixed rules derive every sentence from the tables."""
    lines = [_cells_sentence(sweep)]
    if not sweep.measured:
        return [*lines, "No cell has figures, so the methods cannot be compared."]
    lines += [_methods_sentence(sweep), _spending_sentence(sweep)]
    for field, label in planes_of(sweep).items():
        if sweep.points(field):
            lines.append(_frontier_sentence(sweep, field, label))
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
    best = pareto.kl_spending(sweep.points(WIN_RATE), sweep.settings(), sweep.prompt_figures())[0]
    worth, share, _ = spending_texts(best)
    return (
        f"Largest productive share of its KL: {best.method} with {best.setting}, {share}, "
        f"worth best-of-n at n = {worth}."
    )


def _frontier_sentence(sweep: Sweep, field: str, label: str) -> str:
    points = list(sweep.points(field).values())
    shares = equal_shares(points, sweep.places(field))
    first, *others = shares
    same = [f"{s.method} {share_text(s.share)}" for s in others if not s.leads]
    flags = pareto.frontier_flags(points, sweep.curve(field))
    left = len({p.method for p, flag in zip(points, flags, strict=True) if flag})
    return (
        f"On the frontier of KL and {label}, with equal grids and seeds: {first.method} with "
        f"{share_text(first.share)} of its points; not distinguishable from it: {', '.join(same) or 'none'}. "
        f"Beside best-of-n at its KL bound, {left} of {len(shares)} methods keep a point on it."
    )


def _target_sentence(points: list[Point], curve: list[BonCurvePoint], num_samples: int) -> str:
    closest = pareto.target_comparisons(points, curve, num_samples)[0]
    best = next(c for c in curve if c.n == num_samples)
    return (
        f"Closest to best-of-{num_samples}'s win rate of {best.value:.3f} among those trained "
        f"towards it: {closest.method}, {seed_text(closest.win_rate, 3)} at "
        f"{seed_text(closest.kl_ratio, 2)} times best-of-{num_samples}'s KL bound."
    )
