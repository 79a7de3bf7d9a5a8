"""Reads the records of a sweep: one baseline, and one record per cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from training.sweep.choices import CHOICES, Choices, read_choices, setting_text
from training.sweep.equal_shares import resampled_places
from training.sweep.pareto import BonCurvePoint, Point
from vbon.errors import DataError
from vbon.maths.intervals import MeanInterval
from vbon.storage.evaluation_record import MethodRow
from vbon.storage.validation import first_problem

BEST_OF_N = "best-of-n"
REFERENCE = "reference"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


_AnyRecord = TypeVar("_AnyRecord", bound=_Record)


class BaselineRecord(_Record):
    """The content of ``baseline.json``: reference policy and best-of-n, measured once per sweep."""

    title: str
    prompts: int
    rows: list[MethodRow]
    config: dict[str, Any] = {}
    revisions: dict[str, str] = {}
    git_revision: str | None = None
    versions: dict[str, Any] = {}
    machine: dict[str, Any] | str | None = None
    created: str | float | None = None

    @model_validator(mode="after")
    def _has_all_rows(self) -> BaselineRecord:
        methods = [row.method for row in self.rows]
        if methods.count(REFERENCE) != 1 or BEST_OF_N not in methods:
            raise ValueError('"rows" must contain one "reference" row and "best-of-n" rows')
        return self


class CellSetting(_Record):
    """The position of a cell in the grid; ``variant`` is the name of the method in the report.

    Attributes:
        others: settings besides ``parameter`` that vary within the variant.
    """

    objective: str
    variant: str
    parameter: str
    value: int | float | str | bool | None
    others: dict[str, int | float | str | bool | None] = {}
    seed: int


class CellCost(_Record):
    """The cost of training one checkpoint; times in seconds.

    Attributes:
        cached_samples: the cached reference samples that the objective reads; 0 if it reads none.
        optimizer_updates: 0 in older records.
    """

    samples_drawn: int = 0
    cached_samples: int = 0
    sequences_trained: int = 0
    tokens_drawn: int = 0
    training_seconds: float = 0.0
    sample_seconds: float = 0.0
    steps: int = 0
    optimizer_updates: int = 0

    @property
    def scored_texts(self) -> int:
        """The texts that the reward model scored, cached ones included."""
        return self.samples_drawn + self.cached_samples


class BestOfTuned(_Record):
    """Figures of best-of-n from the samples of the tuned policy."""

    n: int
    win_rate: MeanInterval
    reward: MeanInterval


class CellRecord(_Record):
    """The content of ``cells/NAME/record.json``: a trained checkpoint, or the reason for its absence."""

    cell: CellSetting
    status: Literal["ok", "diverged", "failed"]
    message: str | None = None
    row: MethodRow | None = None
    cost: CellCost | None = None
    config: dict[str, Any] = {}
    git_revision: str | None = None
    versions: dict[str, Any] = {}
    checkpoint: str | None = None
    best_of_tuned: BestOfTuned | None = None
    per_prompt: dict[str, list[float]] = {}

    @model_validator(mode="after")
    def _has_figures(self) -> CellRecord:
        if self.status == "ok" and self.row is None:
            raise ValueError('status "ok" needs a "row" of figures')
        return self

    @property
    def method(self) -> str:
        """The name of the method in the report."""
        return self.cell.variant

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.cell.seed

    @property
    def setting(self) -> str:
        """The varied settings as ``parameter=value, ...``."""
        return setting_text({self.cell.parameter: self.cell.value, **self.cell.others})

    @property
    def target(self) -> int | None:
        """The N that the cell was trained towards, if the sweep varies N; otherwise ``None``."""
        value = self.cell.value
        is_target = self.cell.parameter == "num_samples" and isinstance(value, int | float)
        return int(value) if is_target and value == int(value) else None  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Sweep:
    """All records of one sweep directory.

    Attributes:
        cells: records by the name of the cell's directory, ordered by method, parameter, value, seed.
        unfinished: names of the cells without a record.
        choices: the search on validation prompts behind the cells, if there was one.
    """

    directory: Path
    baseline: BaselineRecord
    cells: dict[str, CellRecord]
    unfinished: tuple[str, ...]
    choices: Choices | None = None

    @property
    def measured(self) -> dict[str, CellRecord]:
        """The cells with figures, without those that diverged or failed."""
        return {name: cell for name, cell in self.cells.items() if cell.status == "ok"}

    @property
    def has_gold(self) -> bool:
        """True if the baseline has figures of a gold reward model."""
        return all(row.gold and row.gold_win_rate for row in self.baseline.rows)

    def count(self, status: str) -> int:
        """The number of cells with the given status."""
        return sum(cell.status == status for cell in self.cells.values())

    def points(self, field: str) -> dict[str, Point]:
        """The measured cells as points (KL, ``field``), by name, without those that lack ``field``."""
        points = {}
        for name, cell in self.measured.items():
            value = getattr(cell.row, field)
            if cell.row is not None and value is not None:
                points[name] = Point(
                    method=cell.method,
                    seed=cell.seed,
                    kl=cell.row.kl_nats.mean,
                    value=value.mean,
                )
        return points

    def places(self, field: str) -> NDArray[np.float64]:
        """KL and ``field`` of the cells of :meth:`points`, in resamples of the prompts, ``(R, N, 2)``."""
        cells = [self.cells[name] for name in self.points(field)]
        rows = [cell.row for cell in cells if cell.row is not None]
        return resampled_places(rows, field, [cell.per_prompt for cell in cells])

    def curve_rows(self) -> list[MethodRow]:
        """The rows of the reference and of best-of-n, ordered by n."""
        known = [r for r in self.baseline.rows if r.method in {REFERENCE, BEST_OF_N}]
        return sorted(known, key=lambda row: row.n)

    def curve(self, field: str) -> list[BonCurvePoint]:
        """The reference and best-of-n at its KL upper bound, ordered by n."""
        rows = self.curve_rows()
        return [BonCurvePoint(r.n, r.kl_nats.mean, getattr(r, field).mean) for r in rows]


def read_sweep(directory: Path) -> Sweep:
    """Read the records of one sweep.

    Raises:
        DataError: the baseline or all cell records are missing, or a record is malformed; the message
            names the file.
    """
    path = directory / "baseline.json"
    if not path.is_file():
        raise DataError(
            f"{directory} contains no baseline.json; it is not the output of `sweep`, or the baseline has "
            "not been measured yet"
        )
    baseline = _read(path, BaselineRecord)
    folders = sorted(
        folder
        for folder in (directory / "cells").glob("*")
        if folder.is_dir() and not folder.name.startswith(".")
    )
    records = [folder for folder in folders if (folder / "record.json").is_file()]
    if not records:
        raise DataError(
            f"{directory}/cells contains no record.json; no cell of the sweep has ended"
        )
    cells = {folder.name: _read(folder / "record.json", CellRecord) for folder in records}
    return Sweep(
        directory=directory,
        baseline=baseline,
        cells=dict(sorted(cells.items(), key=lambda item: _sort_key(item[1]))),
        unfinished=tuple(folder.name for folder in folders if folder not in records),
        choices=read_choices(directory / CHOICES) if (directory / CHOICES).exists() else None,
    )


def methods_of(sweeps: Sequence[Sweep]) -> list[str]:
    """The names of all methods, including failed ones, in order of first appearance."""
    return list(dict.fromkeys(c.method for s in sweeps for c in s.cells.values()))


def _sort_key(cell: CellRecord) -> tuple[str, str, bool, float, str, int]:
    setting = cell.cell
    is_number = isinstance(setting.value, int | float)
    return (
        setting.variant,
        setting.parameter,
        is_number,
        float(setting.value) if isinstance(setting.value, int | float) else 0.0,
        str(setting.value),
        setting.seed,
    )


def _read(path: Path, kind: type[_AnyRecord]) -> _AnyRecord:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}") from error
