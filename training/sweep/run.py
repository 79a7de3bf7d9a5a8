"""``sweep``: trains every cell of a grid and measures it; one record a cell, resumable."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Any

from training.configs import SweepConfig
from training.outputs.identity import read_json_record
from training.outputs.progress import ProgressBar
from training.sweep.grid import GridCell, grid_cells
from vbon.errors import DataError, DivergedError, InvalidInputError, VbonError
from vbon.rewards import open_reward_model
from vbon.storage.atomic import write_json
from vbon.storage.checksums import sha256_of
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance

logger = logging.getLogger(__name__)

BASELINE, RECORD = "baseline.json", "record.json"
# Best-of-n *of* the tuned policy, the figure bon-aware training is for.
BEST_OF_TUNED = 4


def run_sweep(config: SweepConfig) -> None:
    """Train what is not yet trained; what fails is recorded and does not stop the others.

    Raises:
        InvalidInputError: the grid. DataError: some cells failed, after all others are done.
        CheckpointError, DataError, RewardError: what all cells are made from is missing or damaged.
    """
    if config.heldout is None:
        raise InvalidInputError("a sweep needs held-out prompts", field="heldout")
    with sole_writer(config.out):
        _run(config)


def _run(config: SweepConfig) -> None:
    every = grid_cells(config)
    _SHARED.clear()  # an earlier sweep of this process may have read other files at the same paths
    shared = _shared(config)
    todo = [cell for cell in every if not _is_done(cell, shared)]
    logger.info("%d cells, %d to train or to measure", len(every), len(todo))
    tasks: list[GridCell | None] = list(todo)
    if not _baseline_is_done(config, shared):
        tasks.insert(0, None)
    failed = []
    with ProgressBar("sweep", len(every), done=len(every) - len(todo)) as progress:
        for cell, status in _results(config, tasks):
            if cell is None:
                continue
            progress.advance(1, f"{cell.directory.name}: {status}")
            if status == "failed":
                failed.append(cell.directory.name)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(every)} cells failed, see record.json in {config.out / 'cells'}: "
            f"{', '.join(failed[:5])}"
        )


def _results(
    config: SweepConfig, tasks: list[GridCell | None]
) -> Iterator[tuple[GridCell | None, str]]:
    if config.jobs == 1:
        for task in tasks:
            yield task, _run_task(config, task)
        return
    threads = max(1, (os.cpu_count() or 1) // config.jobs)
    with ProcessPoolExecutor(
        config.jobs, multiprocessing.get_context("spawn"), _start_worker, (threads,)
    ) as pool:
        # Cells go by name: their configurations' classes are made at run time and cannot be pickled.
        futures: dict[Future[str], GridCell | None] = {
            pool.submit(_run_named, config, _name(task)): task for task in tasks
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError("a worker died (out of memory?); run again to go on") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.WARNING)
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()


def _follow_parent(parent: int) -> None:
    """A worker whose sweep was killed would train on, unseen, for hours."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _is_done(cell: GridCell, shared: _Shared) -> bool:
    """By what it was made from, not by where that lies; a record that does not say is none."""
    from training.outputs.identity import run_identity

    record = read_json_record(cell.directory / RECORD) or {}
    wanted = {
        "config": cell.config.model_dump(mode="json"),
        "identity": run_identity(cell.objective, cell.config, shared.assets.fingerprints),
    }
    if record.get("status") == "ok":
        wanted["measured_with"] = shared.measured_with
    return record.get("status") in {"ok", "diverged"} and _has(record, wanted)


def _baseline_is_done(config: SweepConfig, shared: _Shared) -> bool:
    return _has(read_json_record(config.out / BASELINE) or {}, _baseline_of(config, shared))


def _has(record: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(record.get(name) == value for name, value in wanted.items())


def _baseline_of(config: SweepConfig, shared: _Shared) -> dict[str, Any]:
    """What the baseline is made from, as its record says it."""
    return {
        "settings": _baseline_settings(config),
        "revisions": shared.revisions,
        "heldout_sha256": shared.measured_with["heldout_sha256"],
    }


def _baseline_settings(config: SweepConfig) -> dict[str, Any]:
    names = {
        "policy", "reward", "gold", "heldout", "heldout_prompts", "reference_samples",
        "max_new_tokens", "temperature", "title",
    }  # fmt: skip
    return config.model_dump(mode="json", include=names)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all cells have in common; nothing heavy is loaded before it is used.

    Attributes:
        revisions: of policy, reward model and gold reward model.
        measured_with: what held-out figures depend on, beside the run that they are of.
    """

    assets: Any
    revisions: dict[str, str]
    measured_with: dict[str, Any]


_SHARED: dict[str, _Shared] = {}


def _shared(config: SweepConfig) -> _Shared:
    """Models, cache and held-out reference samples, once a process."""
    key = config.model_dump_json(exclude={"grid", "seeds", "jobs"})
    if key not in _SHARED:
        _SHARED[key] = _open(config)
    return _SHARED[key]


def _open(config: SweepConfig) -> _Shared:
    from training.train.inputs import TrainingInputs

    if config.heldout is None or not config.heldout.is_file():
        raise DataError(f"prompt file {config.heldout} does not exist")
    assets = TrainingInputs(
        config, config.heldout_prompts, config.reference_samples, config.policy_samples
    )
    gold = _gold_revision(config)
    revisions = {name: assets.fingerprints[f"{name}_revision"] for name in ("policy", "reward")}
    if gold is not None:
        revisions["gold"] = gold
    measured_with = {
        "gold_revision": gold,
        "heldout_sha256": sha256_of(config.heldout),
        **config.model_dump(include={"heldout_prompts", "reference_samples", "policy_samples"}),
    }
    return _Shared(assets, revisions, measured_with)


def _gold_revision(config: SweepConfig) -> str | None:
    if config.gold is None:
        return None
    gold = open_reward_model(
        config.gold,
        trust_remote_code=config.trust_remote_code,
        batch_size=config.reward_batch_size,
    )
    return gold.revision


def _name(task: GridCell | None) -> str | None:
    return None if task is None else task.directory.name


def _run_named(config: SweepConfig, name: str | None) -> str:
    found = None
    if name is not None:
        found = next(cell for cell in grid_cells(config) if _name(cell) == name)
    return _run_task(config, found)


def _run_task(config: SweepConfig, cell: GridCell | None) -> str:
    """Train and record one cell, or measure the baseline."""
    from training.outputs.identity import run_identity

    shared = _shared(config)
    assets = shared.assets
    if cell is None:
        _write_baseline(config, shared)
        return "ok"
    status, message, finished, best = "ok", None, None, None
    try:
        finished, best = _train(cell, assets)
    except DivergedError as error:
        status, message = "diverged", str(error)
    except VbonError as error:
        status, message = "failed", str(error)
    weights_kept = status == "ok" and config.keep_checkpoints
    if status == "ok" and not config.keep_checkpoints:
        shutil.rmtree(cell.config.out, ignore_errors=True)
    write_json(
        cell.directory / RECORD,
        {
            **provenance(cell.config.model_dump(mode="json")),
            "identity": run_identity(cell.objective, cell.config, assets.fingerprints),
            "measured_with": shared.measured_with,
            "cell": {
                "objective": cell.objective,
                "variant": cell.variant,
                "parameter": cell.parameter,
                "value": cell.value,
                "seed": cell.seed,
            },
            "status": status,
            "message": message,
            "row": None if finished is None or finished.row is None else finished.row.model_dump(),
            "cost": {
                **({} if finished is None else finished.cost),
                "cached_samples": sum(
                    len(assets.cache.rewards(row)) for row in range(len(assets.cache))
                ),
            },
            "best_of_tuned": best,
            "checkpoint": str(cell.config.out.relative_to(config.out)) if weights_kept else None,
        },
    )
    return status


def _train(cell: GridCell, assets: Any) -> tuple[Any, dict[str, Any] | None]:
    from training.evaluation.rows import best_of_tuned_policy
    from training.train.run import train

    measured: list[Any] = []
    finished = train(cell.objective, cell.config, assets, measured.extend)
    if not measured:
        return finished, None
    win_rate, reward = best_of_tuned_policy(measured, assets.heldout_reference, BEST_OF_TUNED)
    return finished, {"n": BEST_OF_TUNED, "win_rate": asdict(win_rate), "reward": asdict(reward)}


def _write_baseline(config: SweepConfig, shared: _Shared) -> None:
    from training.evaluation.rows import evaluation_rows

    rows = evaluation_rows(shared.assets.heldout_reference, {}, 4)
    write_json(
        config.out / BASELINE,
        {
            **provenance(config.model_dump(mode="json")),
            **_baseline_of(config, shared),
            "title": config.title,
            "prompts": len(shared.assets.heldout),
            "rows": [row.model_dump() for row in rows],
        },
    )
