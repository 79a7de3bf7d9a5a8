"""Writes what other programs need to check a report: each table as CSV, and the records behind them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.report.sweep_report import SweepReport
from training.sweep.records import CellRecord, Sweep
from vbon.report_html import ReportTable
from vbon.storage.atomic import write_json, write_text

RECORDS, TABLES = "records.json", "tables"
# Facts of a machine, and too long for a table.
_NO_CSV = {"settings"}
_PATHS = {"policy", "reward", "gold", "cache", "heldout", "out"}


def write_data_files(reports: Sequence[SweepReport], out: Path) -> list[Path]:
    """Write ``records.json`` and ``tables/PART-TABLE.csv`` into ``out``.

    Raises:
        ExportError: a file could not be written.
    """
    sweeps = [report.sweep for report in reports if report.sweep is not None]
    write_json(out / RECORDS, {"sweeps": [sweep_records(sweep) for sweep in sweeps]})
    (out / TABLES).mkdir(exist_ok=True)
    for part, report in zip(_part_names(reports), reports, strict=True):
        for table in report.tables:
            if table.key not in _NO_CSV:
                write_text(out / TABLES / f"{part}-{table.key}.csv", csv_text(table))
    return [out / RECORDS, out / TABLES]


def sweep_records(sweep: Sweep) -> dict[str, Any]:
    """The records from which every table of the sweep can be computed, without paths of the machine."""
    base = sweep.baseline
    return {
        "title": base.title,
        "prompts": base.prompts,
        "revisions": base.revisions,
        "git_revision": base.git_revision,
        "versions": base.versions,
        "machine": base.machine,
        "created": base.created,
        "best_of_n": [row.model_dump(exclude_none=True) for row in sweep.curve_rows()],
        "choices": None if sweep.choices is None else sweep.choices.model_dump(mode="json"),
        "cells": {name: _cell_record(cell) for name, cell in sweep.cells.items()},
    }


def _cell_record(cell: CellRecord) -> dict[str, Any]:
    settings = {k: v for k, v in cell.config.items() if k not in _PATHS}
    return {
        **cell.model_dump(include={"cell", "status", "message", "cost", "git_revision"}),
        "method": cell.method,
        "setting": cell.setting,
        "settings": settings,
        # Six digits are far below the noise, and a third of the size.
        "per_prompt": {k: [round(v, 6) for v in values] for k, values in cell.per_prompt.items()},
    }


def csv_text(table: ReportTable) -> str:
    """The plain figures of a table as CSV; an interval takes three columns and its count."""
    data = table.data["rows"] if isinstance(table.data, dict) else table.data
    rows = [_flat(row) for row in data]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat[prefix + name] = " ".join(str(one) for one in value)
        else:
            flat[prefix + name] = value
    return flat


def _part_names(reports: Sequence[SweepReport]) -> list[str]:
    """A file name for each part; parts with equal titles are numbered."""
    slugs = [
        re.sub(r"[^a-z0-9]+", "-", r.title.lower())[:40].strip("-") or "sweep" for r in reports
    ]
    return [
        slug if slugs.count(slug) == 1 else f"{slug}-{number}" for number, slug in enumerate(slugs)
    ]
