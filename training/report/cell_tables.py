"""The tables that repeat a sweep's records: every cell, and what it takes to run them again."""

from __future__ import annotations

import json
from typing import Any

from training.report.text import WIN_RATE, figures, interval, planes_of, win_points
from training.sweep import pareto as tables
from training.sweep.records import CellRecord, Sweep
from vbon.report_html import ReportTable


def cells_sheet(sweep: Sweep) -> ReportTable:
    """One line a cell, the failed and diverged ones with their message."""
    planes = planes_of(sweep)
    results = tables.efficiencies(win_points(sweep), sweep.curve(WIN_RATE))
    ratios = dict(zip(sweep.points(WIN_RATE), results, strict=True))
    again = any(cell.best_of_tuned for cell in sweep.cells.values())

    def texts(name: str, cell: CellRecord) -> tuple[str, ...]:
        result = ratios.get(name)
        row = cell.row if cell.status == "ok" else None
        return (
            cell.cell.variant, cell.setting, str(cell.cell.seed), cell.status,
            interval(row.kl_nats, 2) if row else "-",
            *(figures(row, planes) if row else ["-"] * len(planes)),
            f"{result.ratio:.3f}{' (beyond)' if result.beyond else ''}" if result else "-",
            *([_again(cell)] if again else []),
            cell.message or "", cell.checkpoint or "-",
        )  # fmt: skip

    return ReportTable(
        key="cells",
        title="All cells",
        caption="Mean [95% interval over prompts]; a tuned policy's KL is Rao-Blackwellised. "
        "Efficiency: win rate over best-of-n's at the same KL. Diverged and failed cells with what "
        "they said.",
        columns=("method", "setting", "seed", "status", "KL, nats", *planes.values(), "efficiency",
                 *(["best-of-n of it: win rate"] if again else []), "message", "checkpoint"),
        rows=tuple(texts(name, cell) for name, cell in sweep.cells.items()),
        data=[
            {"name": name, **cell.model_dump(exclude={"config", "versions", "git_revision"}),
             "efficiency": ratios[name].ratio if name in ratios else None,
             "beyond": ratios[name].beyond if name in ratios else None}
            for name, cell in sweep.cells.items()
        ],
    )  # fmt: skip


def settings_sheet(sweep: Sweep) -> ReportTable:
    """Revisions, versions, machine and settings: those all cells share, then what is a cell's own."""
    base = sweep.baseline
    cells = list(sweep.cells.values())
    keys = list(dict.fromkeys(key for cell in cells for key in cell.config))
    shared = {k: cells[0].config.get(k) for k in keys
              if all(k in c.config and c.config[k] == cells[0].config.get(k) for c in cells)}  # fmt: skip
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
        *((f"only {name}", _compact({k: v for k, v in cell.config.items() if k not in shared}))
          for name, cell in sweep.cells.items()),
    ]  # fmt: skip
    return ReportTable(
        key="settings",
        title="Settings and revisions",
        caption="What it takes to run this again.",
        columns=("what", "value"),
        rows=tuple(pairs),
        data=[{"what": what, "value": value} for what, value in pairs],
    )


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else "-"


def _again(cell: CellRecord) -> str:
    best = cell.best_of_tuned
    return f"n={best.n}: {interval(best.win_rate, 3)}" if best else "-"
