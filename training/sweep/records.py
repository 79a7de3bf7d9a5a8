"""Reads the records that a sweep leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from training.sweep.pareto import BonCurvePoint, Point
from vbon.errors import DataError
from vbon.maths.intervals import MeanInterval
from vbon.storage.evaluation_record import MethodRow

BEST_OF_N = "best-of-n"
REFERENCE = "reference"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


_AnyRecord = TypeVar("_AnyRecord", bound=_Record)


class Baseline(_Record):
    """``baseline.json``: the reference policy and best-of-n, measured once a sweep."""

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
    def _complete(self) -> Baseline:
        methods = [row.method for row in self.rows]
        if methods.count(REFERENCE) != 1 or BEST_OF_N not in methods:
            raise ValueError('"rows" must hold one "reference" row and "best-of-n" rows')
        return self


class Setting(_Record):
    """Which cell of the sweep this is; ``variant`` is the method's shown name."""

    objective: str
    variant: str
    parameter: str
    value: int | float | str | bool | None
    seed: int


class CellCost(_Record):
    """What making one checkpoint took; times in seconds."""

    samples_drawn: int = 0
    cached_samples: int = 0
    sequences_trained: int = 0
    tokens_drawn: int = 0
    training_seconds: float = 0.0
    sample_seconds: float = 0.0
    steps: int = 0


class BestOfTuned(_Record):
    """Best-of-n again, of the tuned policy's own samples."""

    n: int
    win_rate: MeanInterval
    reward: MeanInterval


class CellRecord(_Record):
    """``cells/NAME/record.json``: one trained checkpoint, or why there is none."""

    cell: Setting
    status: Literal["ok", "diverged", "failed"]
    message: str | None = None
    row: MethodRow | None = None
    cost: CellCost | None = None
    config: dict[str, Any] = {}
    git_revision: str | None = None
    versions: dict[str, Any] = {}
    checkpoint: str | None = None
    best_of_tuned: BestOfTuned | None = None

    @model_validator(mode="after")
    def _measured(self) -> CellRecord:
        if self.status == "ok" and self.row is None:
            raise ValueError('status "ok" needs a "row" of figures')
        return self

    @property
    def setting(self) -> str:
        """``parameter=value``."""
        return f"{self.cell.parameter}={self.cell.value}"

    @property
    def target(self) -> int | None:
        """The N it was trained towards, if that is the parameter swept."""
        value = self.cell.value
        is_target = self.cell.parameter == "num_samples" and isinstance(value, int | float)
        return int(value) if is_target and value == int(value) else None  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Sweep:
    """All records of one sweep directory.

    Attributes:
        cells: by the name of their directory, in the order of method, parameter, value, seed.
        unfinished: directories of cells without a record.
    """

    directory: Path
    baseline: Baseline
    cells: dict[str, CellRecord]
    unfinished: tuple[str, ...]

    @property
    def measured(self) -> dict[str, CellRecord]:
        """Cells with figures; diverged and failed ones are left out."""
        return {name: cell for name, cell in self.cells.items() if cell.status == "ok"}

    @property
    def has_gold(self) -> bool:
        """Whether a gold reward model reported on the baseline."""
        return all(row.gold and row.gold_win_rate for row in self.baseline.rows)

    def count(self, status: str) -> int:
        """Cells of that status."""
        return sum(cell.status == status for cell in self.cells.values())

    def points(self, field: str) -> dict[str, Point]:
        """Measured cells on the plane (KL, ``field``), by name; those without ``field`` left out."""
        points = {}
        for name, cell in self.measured.items():
            value = getattr(cell.row, field)
            if cell.row is not None and value is not None:
                points[name] = Point(
                    cell.cell.variant,
                    cell.cell.seed,
                    cell.row.kl_nats.mean,
                    value.mean,
                    cell.target,
                )
        return points

    def curve_rows(self) -> list[MethodRow]:
        """The reference, then best-of-n, by n."""
        known = [r for r in self.baseline.rows if r.method in {REFERENCE, BEST_OF_N}]
        return sorted(known, key=lambda row: row.n)

    def curve(self, field: str) -> list[BonCurvePoint]:
        """Reference and best-of-n at its KL upper bound, by n."""
        rows = self.curve_rows()
        return [BonCurvePoint(r.n, r.kl_nats.mean, getattr(r, field).mean) for r in rows]


def read_sweep(directory: Path) -> Sweep:
    """Read one sweep.

    Raises:
        DataError: no baseline or no cell record, or a malformed one; names the file.
    """
    path = directory / "baseline.json"
    if not path.is_file():
        raise DataError(f"{directory} holds no baseline.json: it is no sweep, or not measured yet")
    baseline = _read(path, Baseline)
    folders = sorted(
        folder
        for folder in (directory / "cells").glob("*")
        if folder.is_dir() and not folder.name.startswith(".")
    )
    records = [folder for folder in folders if (folder / "record.json").is_file()]
    if not records:
        raise DataError(f"{directory}/cells holds no record.json: no cell of the sweep has ended")
    cells = {folder.name: _read(folder / "record.json", CellRecord) for folder in records}
    return Sweep(
        directory=directory,
        baseline=baseline,
        cells=dict(sorted(cells.items(), key=lambda item: _order(item[1]))),
        unfinished=tuple(folder.name for folder in folders if folder not in records),
    )


def methods_of(sweeps: Sequence[Sweep]) -> list[str]:
    """Shown names of all methods, failed ones too, in order of first appearance."""
    return list(dict.fromkeys(c.cell.variant for s in sweeps for c in s.cells.values()))


def _order(cell: CellRecord) -> tuple[str, str, bool, float, str, int]:
    what = cell.cell
    number = isinstance(what.value, int | float)
    return (
        what.variant,
        what.parameter,
        number,
        float(what.value) if isinstance(what.value, int | float) else 0.0,
        str(what.value),
        what.seed,
    )


def _read(path: Path, kind: type[_AnyRecord]) -> _AnyRecord:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error
