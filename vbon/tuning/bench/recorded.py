"""Problems made of recorded sweeps: the table ``search.csv`` that ``vbon report`` writes.

The search: a method, its number of samples or beta, and a learning rate. A point has the figures of the
recorded cell of its method whose settings are nearest, on logarithmic scales.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vbon.errors import DataError
from vbon.tuning.bench.problem import Measurement, Params, Problem

if TYPE_CHECKING:
    import optuna

_UNMET = 0.5  # regret in win rate of a study that finds no cell within the limit
_TOLERANCE = 0.005


@dataclass(frozen=True, slots=True)
class Cell:
    """One trained cell of a sweep."""

    method: str
    settings: Mapping[str, float]
    win_rate: float
    kl_nats: float


def recorded_problem(file: Path, n: int = 16) -> Problem:
    """The highest win rate at no more KL than best-of-n's bound, log n - (n - 1) / n.

    Raises:
        DataError: the file is not such a table, or no cell is within the limit.
    """
    cells = _read(file)
    limit = math.log(n) - (n - 1) / n
    feasible = [cell.win_rate for cell in cells if cell.kl_nats <= limit]
    if not feasible:
        raise DataError(
            f"{file}: no cell has at most {limit:.2f} nats, the bound of best-of-{n}; give a larger n"
        )
    names = {name for cell in cells for name in cell.settings}
    ranges = {
        name: _range([cell.settings[name] for cell in cells if name in cell.settings])
        for name in sorted(names)
    }
    own = {cell.method: sorted(cell.settings) for cell in cells}
    for cell in cells:
        found, kept = sorted(cell.settings), own[cell.method]
        if found != kept:
            raise DataError(
                f"{file}: cells of {cell.method} have different settings ({', '.join(found)}, and "
                f"{', '.join(kept)}); leave out those of one kind"
            )

    def ask(trial: optuna.Trial) -> Params:
        method = trial.suggest_categorical("method", list(own))
        asked = {name: trial.suggest_float(name, *ranges[name], log=True) for name in own[method]}
        return {"method": method, **asked}

    def measure(params: Params) -> Measurement:
        def distance(cell: Cell) -> float:
            total = 0.0
            for name, value in cell.settings.items():
                low, high = ranges[name]
                total += (math.log(params[name] / value) / math.log(high / low)) ** 2
            return total

        nearest = min((c for c in cells if c.method == params["method"]), key=distance)
        return Measurement(-nearest.win_rate, {"kl": nearest.kl_nats - limit})

    summary = f"{len(cells)} recorded cells of {len(own)} methods, KL at most {limit:.2f} nats"
    conditional = len({tuple(settings) for settings in own.values()}) > 1
    return Problem(
        f"sweep-{file.stem}", summary, ask, measure, -max(feasible), _UNMET, _TOLERANCE,
        conditional=conditional,
    )  # fmt: skip


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low / 2, high * 2)


def _read(file: Path) -> list[Cell]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        cells = [
            Cell(
                row["method"], _settings(row["setting"]),
                float(row["win_rate.mean"]), float(row["kl_nats.mean"]),
            )
            for row in rows
            if row["status"] == "ok"
        ]  # fmt: skip
        for cell in cells:
            _check(cell)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{file}: not a table of a search ({type(error).__name__}: {error}); give the search.csv that "
            "`vbon report` writes, with columns method, setting, status, win_rate.mean, kl_nats.mean"
        ) from error
    if not cells:
        raise DataError(f"{file}: the table has no cell with status ok")
    return cells


def _check(cell: Cell) -> None:
    """Refuse figures that have no place in a problem.

    Raises:
        ValueError: one is not finite, or a setting is not above 0.
    """
    for name, value in {"win_rate": cell.win_rate, "kl_nats": cell.kl_nats}.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value:g}, and it must be finite")
    for name, value in cell.settings.items():
        if not 0 < value < math.inf:
            raise ValueError(
                f"{name} is {value:g}; settings are searched on logarithmic scales, so leave out cells with "
                "0 or less"
            )


def _settings(text: str) -> dict[str, float]:
    """The settings of ``"num_samples=4, learning_rate=0.0003"``."""
    pairs = (part.split("=") for part in text.split(", "))
    return {name: float(value) for name, value in pairs}
