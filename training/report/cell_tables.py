"""The tables of single cells: the figures of each, and the settings needed to run the sweep again."""

from __future__ import annotations

import json
from typing import Any

from training.report.text import (
    WIN_RATE,
    interval_text,
    plane_texts,
    planes_of,
    win_rate_points,
)
from training.sweep import pareto
from training.sweep.pareto import PointEfficiency
from training.sweep.records import CellRecord, Sweep
from vbon.maths.productive_share import equivalent_n_interval, proven_share
from vbon.report_html import ReportTable
from vbon.storage.evaluation_record import MethodRow


def cells_table(sweep: Sweep) -> ReportTable:
    """One line per cell; diverged and failed ones with their message."""
    planes = planes_of(sweep)
    results = pareto.efficiencies(win_rate_points(sweep), sweep.curve(WIN_RATE))
    efficiencies = dict(zip(sweep.points(WIN_RATE), results, strict=True))
    has_best_of_tuned = any(cell.best_of_tuned for cell in sweep.cells.values())
    rows = []
    for name, cell in sweep.cells.items():
        best_of_tuned = [_best_of_tuned_text(cell)] if has_best_of_tuned else []
        rows.append(
            (
                *_figure_texts(cell, planes),
                _efficiency_text(efficiencies.get(name)),
                *best_of_tuned,
                cell.message or "",
                cell.checkpoint or "-",
            )
        )
    return ReportTable(
        key="cells",
        title="All cells",
        caption="Mean [95% interval over prompts]; the KL of a tuned policy is Rao-Blackwellised. "
        "Efficiency: the win rate divided by that of best-of-n at the same KL. Diverged and failed cells "
        "are listed with their message.",
        columns=(
            "method",
            "setting",
            "seed",
            "status",
            "equivalent n",
            "productive share",
            "KL, nats",
            *planes.values(),
            "efficiency",
            *(["best-of-n from it: win rate"] if has_best_of_tuned else []),
            "message",
            "checkpoint",
        ),
        rows=tuple(rows),
        data=[_cell_data(name, cell, efficiencies.get(name)) for name, cell in sweep.cells.items()],
    )


def _figure_texts(cell: CellRecord, planes: dict[str, str]) -> list[str]:
    row = cell.row if cell.status == "ok" else None
    return [
        cell.method,
        cell.setting,
        str(cell.seed),
        cell.status,
        *(_spending_texts(row) if row else ["-"] * 2),
        interval_text(row.kl_nats, 2) if row else "-",
        *(plane_texts(row, planes) if row else ["-"] * len(planes)),
    ]


def _spending_texts(row: MethodRow) -> list[str]:
    """The equivalent n and the productive share, without interval for records that have none."""
    worth = row.equivalent_n or equivalent_n_interval(row.win_rate)
    share = interval_text(row.productive_share, 2)
    if row.productive_share is None:
        share = f"{proven_share(row.win_rate, row.kl_nats.mean):.2f}"
    return [interval_text(worth, 2), share]


def _efficiency_text(efficiency: PointEfficiency | None) -> str:
    if efficiency is None:
        return "-"
    return f"{efficiency.ratio:.3f}{' (beyond)' if efficiency.beyond else ''}"


def _best_of_tuned_text(cell: CellRecord) -> str:
    best = cell.best_of_tuned
    return f"n={best.n}: {interval_text(best.win_rate, 3)}" if best else "-"


def _cell_data(name: str, cell: CellRecord, efficiency: PointEfficiency | None) -> dict[str, Any]:
    return {
        "name": name,
        **cell.model_dump(exclude={"config", "versions", "git_revision", "per_prompt"}),
        "efficiency": efficiency.ratio if efficiency else None,
        "beyond": efficiency.beyond if efficiency else None,
    }


def settings_table(sweep: Sweep) -> ReportTable:
    """Revisions, versions, machine and settings: first those of all cells, then each cell's own."""
    base = sweep.baseline
    cells = sweep.cells.values()
    shared = _shared_settings([cell.config for cell in cells])
    revisions = sorted({r for r in (base.git_revision, *(c.git_revision for c in cells)) if r})
    versions = list(dict.fromkeys(map(_compact, (base.versions, *(c.versions for c in cells)))))
    pairs: list[tuple[str, str]] = [
        ("directory", str(sweep.directory)),
        ("created", str(base.created or "-")),
        ("code revision", " and ".join(revisions) or "-"),
        *((f"{name} revision", revision) for name, revision in base.revisions.items()),
        ("machine", base.machine if isinstance(base.machine, str) else _compact(base.machine)),
        *(("versions", value) for value in versions),
        ("baseline settings", _compact(base.config)),
        ("settings all cells share", _compact(shared)),
    ]
    for name, cell in sweep.cells.items():
        own = {key: value for key, value in cell.config.items() if key not in shared}
        pairs.append((f"only {name}", _compact(own)))
    return ReportTable(
        key="settings",
        title="Settings and revisions",
        caption="The facts needed to run this sweep again.",
        columns=("what", "value"),
        rows=tuple(pairs),
        data=[{"what": what, "value": value} for what, value in pairs],
    )


def _shared_settings(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that have the same value in all configurations."""
    first = configs[0]
    return {
        key: value
        for key, value in first.items()
        if all(key in config and config[key] == value for config in configs)
    }


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else "-"
