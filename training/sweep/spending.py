"""Compares methods by what their KL buys: equivalent n, productive share, and figures at a target N.

Every figure has a 95% interval over sandboxes, training seeds, prompts and evaluation draws together. Records
without figures of single prompts have the mean with the smallest and largest seed instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.sweep.groups import CellGroup
from training.sweep.pareto import BonCurvePoint, SeedMean, over_seeds
from training.sweep.records import CellRecord
from vbon.maths.crossed_bootstrap import Resampled, Statistic, resample
from vbon.maths.intervals import MeanInterval
from vbon.maths.productive_share import (
    equivalent_n,
    equivalent_ns,
    productive_shares,
    proven_share,
)
from vbon.maths.statistics import holm
from vbon.storage.evaluation_record import MethodRow

Figure = MeanInterval | SeedMean
_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class KlSpending:
    """The equivalent n and the productive share of one group of cells.

    Attributes:
        target: the N that was imitated, or for whose KL the setting was chosen.
        n_differs: whether the largest equivalent n of the same target differs from this one at the 5% level;
            ``None`` for the largest itself, and without figures of single prompts.
        share_differs: the same for the productive share.
    """

    method: str
    setting: str
    target: int | None
    seeds: int
    equivalent_n: Figure
    share: Figure
    win_rate: Figure
    kl: Figure
    n_differs: bool | None = None
    share_differs: bool | None = None


@dataclass(frozen=True, slots=True)
class TargetComparison:
    """A group aimed at one N, compared with best-of-N; ratios are the group's figure over best-of-N's."""

    method: str
    setting: str
    seeds: int
    win_rate: Figure
    win_ratio: Figure
    kl: Figure
    kl_ratio: Figure


def kl_spending(groups: Sequence[CellGroup], *, by_target: bool = False) -> list[KlSpending]:
    """The equivalent n and productive share of each group, the highest share first.

    Args:
        by_target: compare each group with the largest of its own target instead of all groups, and order
            by target first.
    """
    blocks: dict[int | None, list[CellGroup]] = defaultdict(list)
    for group in groups:
        blocks[group.target if by_target else None].append(group)
    rows = []
    for target in sorted(blocks, key=lambda n: (n is None, n)):
        rows += _block_rows(blocks[target])
    return rows


def _block_rows(groups: Sequence[CellGroup]) -> list[KlSpending]:
    ns = [_resampled(group, lambda m: equivalent_ns(m[0])) for group in groups]
    shares = [_resampled(group, lambda m: productive_shares(m[0], m[1])) for group in groups]
    n_differs, share_differs = _differ_from_largest(ns), _differ_from_largest(shares)
    rows = [
        KlSpending(
            method=group.method,
            setting=group.setting,
            target=group.target,
            seeds=group.seeds,
            equivalent_n=_equivalent_n(group, ns[i]),
            share=_share(group, shares[i]),
            win_rate=_figure(group, lambda m: m[0], lambda row: row.win_rate.mean),
            kl=_figure(group, lambda m: m[1], lambda row: row.kl_nats.mean),
            n_differs=n_differs[i],
            share_differs=share_differs[i],
        )
        for i, group in enumerate(groups)
    ]
    return sorted(rows, key=lambda row: (-row.share.mean, row.method, row.setting))


def targets_of(groups: Sequence[CellGroup], curve: Sequence[BonCurvePoint]) -> list[int]:
    """Each measured n > 1 that some group was aimed at, ascending."""
    measured = {c.n for c in curve if c.n > 1}
    return sorted(measured & {group.target for group in groups if group.target is not None})


def target_comparisons(
    groups: Sequence[CellGroup], best: Sequence[BonCurvePoint]
) -> list[TargetComparison]:
    """The groups aimed at one N beside best-of-N, the closest to its win rate first.

    Args:
        best: best-of-N in each sandbox.
    """
    rows = [
        TargetComparison(
            method=group.method,
            setting=group.setting,
            seeds=group.seeds,
            win_rate=_figure(group, lambda m: m[0], lambda row: row.win_rate.mean),
            win_ratio=_figure(
                group, lambda m: m[0], lambda row: row.win_rate.mean, [b.value for b in best]
            ),
            kl=_figure(group, lambda m: m[1], lambda row: row.kl_nats.mean),
            kl_ratio=_figure(
                group, lambda m: m[1], lambda row: row.kl_nats.mean, [b.kl for b in best]
            ),
        )
        for group in groups
        if group.target == best[0].n
    ]
    aim = float(np.mean([b.value for b in best]))
    return sorted(rows, key=lambda row: (abs(row.win_rate.mean - aim), row.method))


def _resampled(group: CellGroup, statistic: Statistic) -> Resampled | None:
    figures = group.prompt_figures("win_rate", "kl_nats")
    return None if figures is None else resample(figures, statistic, group.method)


def _figure(
    group: CellGroup,
    statistic: Statistic,
    of_row: Callable[[MethodRow], float],
    scales: Sequence[float] | None = None,
) -> Figure:
    """A figure with its interval, or over seeds by ``of_row``.

    Args:
        scales: divides the figure by one number in each sandbox.
    """
    divisors = scales or [1.0] * len(group.cells)
    figures = group.prompt_figures("win_rate", "kl_nats")
    if figures is not None:
        scaled = [values / divisor for values, divisor in zip(figures, divisors, strict=True)]
        return resample(scaled, statistic, group.method).interval()
    return _over_cells(group, lambda sandbox, row: of_row(row) / divisors[sandbox])


def _over_cells(group: CellGroup, value: Callable[[int, MethodRow], float]) -> SeedMean:
    return over_seeds(
        {
            place: [value(sandbox, _row(cell))]
            for place, (sandbox, cell) in enumerate(
                (sandbox, cell) for sandbox, cells in enumerate(group.cells) for cell in cells
            )
        }
    )


def _equivalent_n(group: CellGroup, found: Resampled | None) -> Figure:
    if found is None:
        return _over_cells(group, lambda _, row: equivalent_n(row.win_rate.mean))
    return found.interval()


def _share(group: CellGroup, found: Resampled | None) -> Figure:
    """The productive share; 0 if the win rate of every cell may be one half."""
    if found is None:
        return _over_cells(group, lambda _, row: proven_share(row.win_rate, row.kl_nats.mean))
    share = found.interval()
    if all(_row(cell).win_rate.low <= 0.5 for cells in group.cells for cell in cells):
        return MeanInterval(0.0, 0.0, min(1.0, share.high), share.count)
    # Widened deviations of few sandboxes may pass below 0, where no share can be.
    return MeanInterval(share.mean, max(0.0, share.low), share.high, share.count)


def _differ_from_largest(found: Sequence[Resampled | None]) -> list[bool | None]:
    """Tell of each group whether its figure differs from the largest (Holm, over paired resamples)."""
    known = [one for one in found if one is not None]
    if len(known) != len(found):
        return [None] * len(found)
    first = int(np.argmax([one.point for one in known]))
    others = [i for i in range(len(known)) if i != first]
    adjusted = holm([known[first].p_value_against(known[i]) for i in others])
    differs: list[bool | None] = [None] * len(known)
    for i, p in zip(others, adjusted, strict=True):
        differs[i] = p < _LEVEL
    return differs


def _row(cell: CellRecord) -> MethodRow:
    assert cell.row is not None
    return cell.row
