"""Trains one cell of a sweep and writes its record."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from training.configs import SweepConfig
from training.outputs.identity import read_json_record, run_identity
from training.sweep.grid import GridCell
from training.sweep.shared_inputs import SharedInputs
from training.train.config import objective_of
from vbon.errors import DivergedError, VbonError
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance

if TYPE_CHECKING:
    from training.evaluation.measure import PromptSamples
    from training.train.finished import FinishedRun
    from training.train.inputs import TrainingInputs

CELL_RECORD = "record.json"
# The n of best-of-n *from* the tuned policy, the figure that bon-aware objectives maximize.
BEST_OF_TUNED = 4

CellStatus = Literal["ok", "diverged", "failed"]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The result of training a cell.

    Attributes:
        message: the error of a cell that diverged or failed.
        best_of_tuned: figures of best-of-n from the tuned policy; ``None`` without held-out samples.
        per_prompt: held-out figures of each prompt, by field.
    """

    status: CellStatus
    message: str | None = None
    finished: FinishedRun | None = None
    best_of_tuned: dict[str, Any] | None = None
    per_prompt: dict[str, list[float]] | None = None


def cell_is_current(cell: GridCell, shared: SharedInputs) -> bool:
    """Tell whether a cell's record was made with the present settings and inputs.

    Inputs are compared by content, not by path. A cell that failed is never current, and one that diverged
    has no figures that could be out of date.
    """
    record = read_json_record(cell.directory / CELL_RECORD) or {}
    if record.get("status") not in {"ok", "diverged"}:
        return False
    wanted: dict[str, Any] = {
        "config": cell.config.model_dump(mode="json"),
        "identity": _identity(cell, shared),
    }
    if record["status"] == "ok":
        wanted["measured_with"] = shared.measured_with
    return all(record.get(name) == value for name, value in wanted.items())


def train_cell(config: SweepConfig, cell: GridCell, shared: SharedInputs) -> CellStatus:
    """Train one cell and write its record, also if the training diverges or fails."""
    outcome = _train(cell, shared.training)
    if outcome.status == "ok" and not config.keep_checkpoints:
        shutil.rmtree(cell.config.out, ignore_errors=True)
    write_json(cell.directory / CELL_RECORD, _cell_record(config, cell, shared, outcome))
    return outcome.status


def record_failure(config: SweepConfig, cell: GridCell, shared: SharedInputs, message: str) -> None:
    """Write the record of a cell whose process could not write one itself."""
    outcome = _Outcome("failed", message)
    write_json(cell.directory / CELL_RECORD, _cell_record(config, cell, shared, outcome))


def _train(cell: GridCell, inputs: TrainingInputs) -> _Outcome:
    from training.train.run import train

    samples: list[PromptSamples] = []
    try:
        finished = train(cell.objective, cell.config, inputs, samples.extend)
        best_of_tuned = _best_of_tuned(samples, inputs) if samples else None
        per_prompt = _per_prompt(samples, inputs) if samples else None
    except DivergedError as error:
        return _Outcome("diverged", str(error))
    except VbonError as error:
        return _Outcome("failed", str(error))
    return _Outcome("ok", None, finished, best_of_tuned, per_prompt)


def _per_prompt(samples: list[PromptSamples], inputs: TrainingInputs) -> dict[str, list[float]]:
    from training.evaluation.rows import per_prompt_figures

    return per_prompt_figures(samples, inputs.heldout_reference)


def _best_of_tuned(samples: list[PromptSamples], inputs: TrainingInputs) -> dict[str, Any]:
    from training.evaluation.rows import best_of_tuned_policy

    win_rate, reward = best_of_tuned_policy(samples, inputs.heldout_reference, BEST_OF_TUNED)
    return {"n": BEST_OF_TUNED, "win_rate": asdict(win_rate), "reward": asdict(reward)}


def _cell_record(
    config: SweepConfig, cell: GridCell, shared: SharedInputs, outcome: _Outcome
) -> dict[str, Any]:
    cache, finished = shared.training.cache, outcome.finished
    cached = sum(len(cache.rewards(row)) for row in range(len(cache)))
    checkpoint = None
    if outcome.status == "ok" and config.keep_checkpoints:
        checkpoint = str(cell.config.out.relative_to(config.out))
    return {
        **provenance(cell.config.model_dump(mode="json")),
        "identity": _identity(cell, shared),
        "measured_with": shared.measured_with,
        "cell": {
            "objective": cell.objective,
            "variant": cell.variant,
            "parameter": cell.parameter,
            "value": cell.value,
            "others": cell.others,
            "seed": cell.seed,
        },
        "status": outcome.status,
        "message": outcome.message,
        "row": finished.row.model_dump() if finished and finished.row else None,
        "cost": {
            **(finished.cost if finished else {}),
            "cached_samples": cached if reads_cache(cell) else 0,
        },
        "best_of_tuned": outcome.best_of_tuned,
        "per_prompt": outcome.per_prompt or {},
        "checkpoint": checkpoint,
    }


def reads_cache(cell: GridCell) -> bool:
    """True if the cell trains on cached samples or their rewards; otherwise it only takes the prompts."""
    return objective_of(cell.objective, cell.config).uses_cache or cell.config.warm_start_steps > 0


def _identity(cell: GridCell, shared: SharedInputs) -> dict[str, Any]:
    return run_identity(cell.objective, cell.config, shared.training.fingerprints)
