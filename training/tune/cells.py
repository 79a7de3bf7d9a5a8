"""Trains the cells of a search with the parts of `vbon sweep`, and reads their figures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.configs import CellWorkers, SweepConfig, TrainConfig
from training.sweep.baseline import baseline_is_current
from training.sweep.cell import CELL_RECORD, cell_is_current
from training.sweep.grid import GridCell, grid_cells
from training.sweep.records import BaselineRecord, CellRecord
from training.sweep.shared_inputs import SharedInputs, forget_shared_inputs, shared_inputs
from training.sweep.tasks import Task, run_task
from training.train.config import train_config_type
from training.tune.config import TuneTrainingConfig
from training.tune.space import WARM_START_SHARE, strength_of
from vbon.errors import DataError, InvalidInputError
from vbon.maths.intervals import MeanInterval
from vbon.measured.target import Metric, Target
from vbon.storage.evaluation_record import MethodRow
from vbon.storage.validation import first_problem

_FIELDS: dict[Metric, str] = {"reward": "reward", "gold": "gold", "win-rate": "win_rate"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """An objective with its settings, as a trial proposes them."""

    objective: str
    settings: tuple[tuple[str, Any], ...]

    @property
    def label(self) -> str:
        """The candidate for people."""
        parts = [f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in self.settings]
        return ", ".join([self.objective, *parts])


@dataclass(frozen=True, slots=True)
class Trained:
    """The figures of one trained cell on the prompts of a part.

    Attributes:
        price: KL, seconds of training, or scored samples.
        directory: of the cell.
    """

    candidate: Candidate
    gain: MeanInterval
    kl: MeanInterval
    seconds: float
    samples: int
    directory: Path

    def price(self, kind: str) -> float:
        """KL in nats, seconds of training, or scored samples."""
        if kind == "kl":
            return self.kl.mean
        return self.seconds if kind == "seconds" else float(self.samples)


class CellTrainer:
    """Trains candidates and measures them on one set of prompts.

    Args:
        prompts: the prompts that figures are measured on.
        directory: the sweep directory of the cells.
        keep: whether checkpoints are kept.
    """

    def __init__(
        self, config: TuneTrainingConfig, prompts: Path, directory: Path, *, keep: bool
    ) -> None:
        self._config, self._prompts, self._directory, self._keep = config, prompts, directory, keep
        self._tried: set[str] = set()
        forget_shared_inputs()

    def baseline(self) -> BaselineRecord:
        """The reference policy and best-of-n on these prompts, measured once."""
        sweep = self._sweep([], self._config.seed, {})
        shared = shared_inputs(sweep)
        if not baseline_is_current(sweep, shared):
            self._do([(sweep, None)])
        path = self._directory / "baseline.json"
        return BaselineRecord.model_validate_json(path.read_bytes())

    def train(self, candidate: Candidate, seed: int, metric: Metric) -> Trained:
        """Train a candidate, unless its record is there, and read its figures.

        Raises:
            DataError: the training diverged or failed, or the gain could not be measured; says why.
            InvalidInputError: the objective refuses the settings.
        """
        cell, shared, sweep = self._cell(candidate, seed)
        # A cell that failed beside others is not tried again.
        if cell.name not in self._tried and not cell_is_current(cell, shared):
            self._do([(sweep, cell)])
        record = CellRecord.model_validate_json((cell.directory / CELL_RECORD).read_bytes())
        if record.status != "ok" or record.row is None:
            raise DataError(f"{candidate.label}: {record.status}: {record.message}")
        gain = gain_of(record.row, metric)
        if gain is None:
            raise DataError(f"{candidate.label}: its {metric} could not be measured")
        cost = record.cost
        return Trained(
            candidate,
            gain,
            record.row.kl_nats,
            0.0 if cost is None else cost.training_seconds,
            0 if cost is None else cost.scored_texts,
            cell.directory,
        )

    def train_side_by_side(self, wanted: Sequence[tuple[Candidate, int]]) -> None:
        """Train candidates with seeds at once, for later calls of :meth:`train`, if there are several places.

        Raises:
            InvalidInputError: an objective refuses the settings.
        """
        if self._config.backend != "ray":
            return
        cells = [self._cell(candidate, seed) for candidate, seed in wanted]
        todo = [(sweep, cell) for cell, shared, sweep in cells if not cell_is_current(cell, shared)]
        self._do(todo)
        self._tried |= {cell.name for _, cell in todo}

    def _do(self, tasks: Sequence[tuple[SweepConfig, Task]]) -> None:
        """Train cells or measure a baseline, here or on Ray; they write their records."""
        if self._config.backend == "ray":
            from training.sweep.ray_cells import Job, ray_results

            for _ in ray_results(self._config, [Job(sweep, task) for sweep, task in tasks]):
                pass
            return
        for sweep, task in tasks:
            run_task(sweep, task)

    def _cell(self, candidate: Candidate, seed: int) -> tuple[GridCell, SharedInputs, SweepConfig]:
        settings = self._with_steps(candidate)
        shared_names = {"cache"}
        own = {name: value for name, value in settings.items() if name not in shared_names}
        fields = train_config_type(candidate.objective).model_fields
        strength = strength_of(fields)
        first = own.pop(strength, fields[strength].default)
        # Cells of one objective that differ in other settings need names, and so directories, of their own.
        digest = hashlib.blake2b(repr(candidate.settings).encode(), digest_size=4).hexdigest()
        parts = [f"{candidate.objective}-{digest}={candidate.objective}: {strength}={first}"]
        parts += [f"{name}={value}" for name, value in own.items()]
        inputs = {name: settings[name] for name in shared_names if name in settings}
        sweep = self._sweep(["; ".join(parts)], seed, inputs)
        (cell,) = grid_cells(sweep)
        return cell, shared_inputs(sweep), sweep

    def _with_steps(self, candidate: Candidate) -> dict[str, Any]:
        """The settings with the share of the warm start as a number of steps."""
        settings = dict(candidate.settings)
        share = settings.pop(WARM_START_SHARE, None)
        if share is not None:
            steps = int(settings.get("steps", self._config.steps))
            settings["warm_start_steps"] = min(round(float(share) * steps), steps - 1)
        return settings

    def _sweep(self, grid: list[str], seed: int, inputs: Mapping[str, Any]) -> SweepConfig:
        """The settings of the sweep that trains a candidate.

        Raises:
            InvalidInputError: a sweep does not take one of them.
        """
        config = self._config
        given = {
            name: getattr(config, name)
            for name in TrainConfig.model_fields
            if name in config.model_fields_set or name in {"gold", "steps"}
        }
        ray = (
            {name: getattr(config, name) for name in CellWorkers.model_fields}
            if config.backend == "ray"
            else {}
        )
        values = {
            **given,
            **inputs,
            "out": self._directory,
            "heldout": self._prompts,
            "grid": grid or ["vbon: num_samples=2"],
            "seeds": [seed],
            "keep_checkpoints": self._keep,
            "heldout_prompts": config.heldout_prompts,
            "reference_samples": config.reference_samples,
            "policy_samples": config.policy_samples,
            **ray,
        }
        try:
            return SweepConfig(**values)
        except ValidationError as error:
            place = error.errors()[0]["loc"]
            raise InvalidInputError(
                first_problem(error), field=str(place[0]) if place else "settings"
            ) from error


def gain_of(row: MethodRow, metric: Metric) -> MeanInterval | None:
    """The gain of a row; ``None`` if it was not measured."""
    found: MeanInterval | None = getattr(row, _FIELDS[metric])
    return found


def level_of(target: Target, baseline: BaselineRecord) -> float:
    """The level of a target; that of best-of-K is the one measured on the same prompts.

    Raises:
        InvalidInputError: best-of-K was not measured for this K.
    """
    if target.level is not None:
        return target.level
    known = {row.n: row for row in baseline.rows if row.method == "best-of-n"}
    row = known.get(target.best_of or 0)
    gain = None if row is None else gain_of(row, target.metric)
    if gain is None:
        raise InvalidInputError(
            f"best-of-{target.best_of} is not among the measured n; choose one of "
            f"{', '.join(map(str, sorted(known)))}",
            field="target",
        )
    return gain.mean
