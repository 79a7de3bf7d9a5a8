"""Summarizes the findings of a sweep in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from training.report.text import WIN_RATE, figure_text, planes_of, share_text
from training.sweep import pareto
from training.sweep.equal_shares import equal_shares
from training.sweep.groups import CellGroup, groups_of
from training.sweep.records import Sweep
from training.sweep.spending import KlSpending, kl_spending, target_comparisons, targets_of
from vbon.maths.intervals import MeanInterval

SUMMARY_TARGETS = (4, 16)


def summarize(sweep: Sweep) -> list[str]:
    """The findings, one sentence each; fixed rules derive every sentence from the tables."""
    lines = [_cells_sentence(sweep)]
    if not sweep.measured:
        return [*lines, "No cell has figures, so the methods cannot be compared."]
    groups = groups_of([sweep])
    lines += [_methods_sentence(sweep), *spending_sentences([sweep], groups)]
    for field, label in planes_of(sweep).items():
        if sweep.points(field):
            lines.append(_frontier_sentence(sweep, field, label))
    for num_samples in targets_of(groups, sweep.curve(WIN_RATE)):
        if num_samples in SUMMARY_TARGETS:
            lines.append(_target_sentence(sweep, groups, num_samples))
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
    found = f"Methods with figures: {methods}, over {seeds} seed{'s' if seeds > 1 else ''}."
    return found if seeds > 1 else f"{found} No interval covers the differences between seeds."


def spending_sentences(sweeps: Sequence[Sweep], groups: Sequence[CellGroup]) -> list[str]:
    """The largest equivalent n and productive share, of each target after a search."""
    if all(sweep.choices is not None for sweep in sweeps):
        rows = kl_spending(groups, by_target=True)
        sentences = []
        for target in dict.fromkeys(row.target for row in rows):
            block = [row for row in rows if row.target == target]
            sentences += [
                f"Within the KL of best-of-{target}: {_largest_n(block)}",
                f"Within the KL of best-of-{target}: {_largest_share(block)}",
            ]
        return sentences
    return [_largest_share(kl_spending(groups))]


def _largest_share(rows: Sequence[KlSpending]) -> str:
    best, *others = rows
    same = [f"{r.method} {figure_text(r.share, 2)}" for r in others if r.share_differs is False]
    return (
        f"Largest productive share of its KL: {best.method} with {best.setting}, "
        f"{figure_text(best.share, 2)}, worth best-of-n at n = {figure_text(best.equivalent_n, 2)}"
        f"{_not_distinguishable(best, same)}"
    )


def _largest_n(rows: Sequence[KlSpending]) -> str:
    best, *others = sorted(rows, key=lambda row: -row.equivalent_n.mean)
    same = [f"{r.method} {figure_text(r.equivalent_n, 2)}" for r in others if r.n_differs is False]
    return (
        f"Largest equivalent n: {best.method} with {best.setting}, {figure_text(best.equivalent_n, 2)}"
        f"{_not_distinguishable(best, same)}"
    )


def _not_distinguishable(best: KlSpending, same: Sequence[str]) -> str:
    """The end of a sentence that names the methods within the noise of the best one."""
    if not isinstance(best.share, MeanInterval):
        return "."
    return f"; not distinguishable from it: {', '.join(same) or 'none'}."


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


def _target_sentence(sweep: Sweep, groups: Sequence[CellGroup], num_samples: int) -> str:
    best = next(c for c in sweep.curve(WIN_RATE) if c.n == num_samples)
    closest = target_comparisons(groups, [best])[0]
    return (
        f"Closest to best-of-{num_samples}'s win rate of {best.value:.3f} among those trained "
        f"towards it: {closest.method}, {figure_text(closest.win_rate, 3)} at "
        f"{figure_text(closest.kl_ratio, 2)} times best-of-{num_samples}'s KL bound."
    )
