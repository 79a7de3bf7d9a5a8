"""The tables of what each method's KL buys, of its costs, and of the search for its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from training.report.text import WIN_RATE, differs_text, figure_text
from training.sweep.choices import Choices
from training.sweep.groups import CellGroup, groups_of
from training.sweep.records import CellRecord, Sweep
from training.sweep.spending import kl_spending, target_comparisons, targets_of
from vbon.maths.intervals import MeanInterval
from vbon.report_html import ReportTable

COSTS = {
    "optimizer_updates": "optimizer updates",
    "sequences_trained": "sequences trained",
    "samples_drawn": "samples drawn",
    "cached_samples": "cached samples",
    "scored_texts": "scored texts",
    "tokens_drawn": "tokens drawn",
    "training_seconds": "training, s",
    "sample_seconds": "of which sampling, s",
}
_OVER = {
    False: "over training seeds, prompts and evaluation draws together",
    True: "over sandboxes, training seeds, prompts and evaluation draws together",
}


def spending_tables(sweeps: Sequence[Sweep]) -> list[ReportTable]:
    """The table of what the KL buys, and one for each target N; each sweep is one sandbox."""
    groups = groups_of(sweeps)
    if not groups:
        return []
    curves = [sweep.curve(WIN_RATE) for sweep in sweeps]
    common = set.intersection(*({c.n for c in curve} for curve in curves))
    targets = [n for n in targets_of(groups, curves[0]) if n in common]
    return [
        productive_table(sweeps, groups),
        *(_target_table(sweeps, groups, num_samples) for num_samples in targets),
    ]


def productive_table(sweeps: Sequence[Sweep], groups: Sequence[CellGroup]) -> ReportTable:
    """The equivalent n and the productive share of every group, the highest share first."""
    searched = all(sweep.choices is not None for sweep in sweeps)
    rows = kl_spending(groups, by_target=searched)
    chosen = (
        "Each method has the setting that a search on validation prompts chose for each target N: the "
        "highest win rate at no more than best-of-N's KL bound. "
    )
    return ReportTable(
        key="productive_share",
        title="What the KL buys",
        caption=f"{chosen if searched else ''}Equivalent n: the n of best-of-n that has the checkpoint's win "
        "rate. Productive share: the KL of best-of-n at that win rate, divided by the checkpoint's KL; 0 for "
        "a policy that moved for nothing or whose win rate may be one half, about 1 at most. Mean over seeds "
        f"[95% interval {_OVER[len(sweeps) > 1]}], or (smallest to largest seed) for records without figures "
        "of single prompts. Differs: whether the largest figure of the same target differs from this one at "
        "the 5% level, by resamples in pairs on the same prompts, adjusted for all comparisons (Holm).",
        columns=(
            *(["target N"] if searched else []),
            "method",
            "setting",
            "cells",
            "equivalent n",
            "differs from the largest n",
            "productive share",
            "differs from the largest share",
            "win rate",
            "KL, nats",
        ),
        rows=tuple(
            (
                *([str(row.target)] if searched else []),
                row.method,
                row.setting,
                str(row.seeds),
                figure_text(row.equivalent_n, 2),
                differs_text(row.n_differs),
                figure_text(row.share, 2),
                differs_text(row.share_differs),
                figure_text(row.win_rate, 3),
                figure_text(row.kl, 2),
            )
            for row in rows
        ),
        data=[asdict(row) for row in rows],
    )


def _target_table(
    sweeps: Sequence[Sweep], groups: Sequence[CellGroup], num_samples: int
) -> ReportTable:
    best = [next(c for c in s.curve(WIN_RATE) if c.n == num_samples) for s in sweeps]
    comparisons = target_comparisons(groups, best)
    value = float(np.mean([one.value for one in best]))
    return ReportTable(
        key=f"target_{num_samples}",
        title=f"Beside best-of-{num_samples}",
        caption=f"Best-of-{num_samples} itself has win rate {value:.3f} at no more than "
        f"{best[0].kl:.3f} nats. Ratios divide the method's figure by that of best-of-{num_samples} "
        f"(for KL, by that bound). Mean over seeds [95% interval {_OVER[len(sweeps) > 1]}], or (smallest to "
        "largest seed); closest win rate first.",
        columns=(
            "method",
            "setting",
            "cells",
            "win rate",
            "of best-of-N's",
            "KL, nats",
            "of best-of-N's bound",
        ),
        rows=tuple(
            (
                comparison.method,
                comparison.setting,
                str(comparison.seeds),
                figure_text(comparison.win_rate, 3),
                figure_text(comparison.win_ratio, 2),
                figure_text(comparison.kl, 2),
                figure_text(comparison.kl_ratio, 2),
            )
            for comparison in comparisons
        ),
        data={
            "n": num_samples,
            "best_of_n": [asdict(one) for one in best],
            "rows": [asdict(comparison) for comparison in comparisons],
        },
    )


def cost_table(sweeps: Sequence[Sweep]) -> ReportTable:
    """The budget of one checkpoint of each method, and the settings that its search tried."""
    measured = [cell for sweep in sweeps for cell in sweep.measured.values()]
    searches = [sweep.choices for sweep in sweeps if sweep.choices is not None]
    data = []
    for method in dict.fromkeys(cell.method for cell in measured):
        cells = [cell for cell in measured if cell.method == method and cell.cost]
        row = {"method": method, "cells": len(cells), **_median_costs(cells)}
        if searches:
            row["settings_tried"] = sum(one.method == method for one in searches[0].tried)
        data.append(row)
    tried = {"settings_tried": "settings tried"} if searches else {}
    return ReportTable(
        key="cost",
        title="Budget of a checkpoint",
        caption="Median over the method's cells. Sequences trained: those in the batches of all updates. "
        "Samples and tokens drawn: during training. Cached samples: those of the reference that the method "
        "reads; they are drawn and scored once and serve all cells, but a single checkpoint needs all of "
        "them. Scored texts: samples drawn and cached samples together.",
        columns=("method", "cells", *COSTS.values(), *tried.values()),
        rows=tuple(
            (
                str(row["method"]),
                str(row["cells"]),
                *(f"{row[f]:,.0f}" if f in row else "-" for f in COSTS),
                *(str(row[f]) for f in tried),
            )
            for row in data
        ),
        data={"rows": data},
    )


def _median_costs(cells: Sequence[CellRecord]) -> dict[str, float]:
    costs = [cell.cost for cell in cells if cell.cost]
    return {f: float(np.median([getattr(cost, f) for cost in costs])) for f in COSTS if costs}


def search_table(choices: Choices) -> ReportTable:
    """The settings that the search tried, with their figures on the validation prompts."""
    budgets = {choice.target: choice.kl_budget for choice in choices.chosen}
    limits = ", ".join(f"{budget:.3f} nats for N = {n}" for n, budget in budgets.items())
    return ReportTable(
        key="search",
        title="The search for settings",
        caption=f"Figures on {choices.validation.get('prompts', '?')} validation prompts, training seed "
        f"{choices.search_seed}; mean [95% interval over prompts]. Chosen for N: the highest win rate at no "
        f"more KL than best-of-N's bound ({limits}); (over) marks a method whose settings all spend more, of "
        "which the one that spends least is taken.",
        columns=("method", "setting", "status", "win rate", "KL, nats", "chosen for N"),
        rows=tuple(
            (
                tried.method,
                tried.setting,
                tried.status,
                _interval_or_dash(tried.win_rate, 3),
                _interval_or_dash(tried.kl_nats, 2),
                _chosen_text(choices, tried.method, tried.setting),
            )
            for tried in choices.tried
        ),
        data=[
            {**tried.model_dump(exclude={"cost"}), "chosen_for": targets}
            for tried in choices.tried
            for targets in [choices.targets_of(tried.method, tried.setting)]
        ],
    )


def _interval_or_dash(value: MeanInterval | None, digits: int) -> str:
    return "-" if value is None else figure_text(value, digits)


def _chosen_text(choices: Choices, method: str, setting: str) -> str:
    found = [c for c in choices.chosen if (c.method, c.setting) == (method, setting)]
    return ", ".join(f"{c.target}{'' if c.within_budget else ' (over)'}" for c in found) or "-"
