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
from dataclasses import asdict
from typing import Any

from bestofn.errors import BestOfNError, DataError, DivergedError, InvalidInputError
from bestofn.files import write_json
from bestofn.locks import sole_writer
from bestofn.provenance import provenance
from training.configs import SweepConfig
from training.grid import Cell, cells
from training.progress import ProgressBar
from training.records import read_record

logger = logging.getLogger(__name__)

BASELINE, RECORD = "baseline.json", "record.json"
# Best-of-n *of* the tuned policy, the figure bon-aware training is for.
BEST_OF_TUNED = 4


def run_sweep(config: SweepConfig) -> None:
    """Train what is not yet trained; what fails is recorded and does not stop the others.

    Raises:
        InvalidInputError: the grid. DataError: some cells failed, after all others are done.
    """
    if config.heldout is None:
        raise InvalidInputError("a sweep needs held-out prompts", field="heldout")
    with sole_writer(config.out):
        _run(config)


def _run(config: SweepConfig) -> None:
    every = cells(config)
    todo = [cell for cell in every if not _is_done(cell)]
    logger.info("%d cells, %d to train", len(every), len(todo))
    tasks: list[Cell | None] = list(todo)
    if not _baseline_is_done(config):
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


def _results(config: SweepConfig, tasks: list[Cell | None]) -> Iterator[tuple[Cell | None, str]]:
    if config.jobs == 1:
        for task in tasks:
            yield task, _run_task(config, task)
        return
    threads = max(1, (os.cpu_count() or 1) // config.jobs)
    with ProcessPoolExecutor(
        config.jobs, multiprocessing.get_context("spawn"), _start_worker, (threads,)
    ) as pool:
        # Cells go by name: their configurations' classes are made at run time and cannot be pickled.
        futures: dict[Future[str], Cell | None] = {
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


def _is_done(cell: Cell) -> bool:
    record = read_record(cell.directory / RECORD)
    return (
        record is not None
        and record.get("config") == cell.config.model_dump(mode="json")
        and record["status"] != "failed"
    )


def _baseline_is_done(config: SweepConfig) -> bool:
    record = read_record(config.out / BASELINE)
    wanted = _baseline_settings(config)
    return record is not None and record.get("settings") == wanted


def _baseline_settings(config: SweepConfig) -> dict[str, Any]:
    names = {
        "policy", "reward", "gold", "heldout", "heldout_prompts", "reference_samples",
        "max_new_tokens", "temperature", "title",
    }  # fmt: skip
    return config.model_dump(mode="json", include=names)


_ASSETS: dict[str, Any] = {}


def _assets(config: SweepConfig) -> Any:
    """Models, cache and held-out reference samples, once a process."""
    from training.assets import Assets

    key = config.model_dump_json(exclude={"grid", "seeds", "jobs"})
    if key not in _ASSETS:
        _ASSETS[key] = Assets(
            config, config.heldout_prompts, config.reference_samples, config.policy_samples
        )
    return _ASSETS[key]


def _name(task: Cell | None) -> str | None:
    return None if task is None else task.directory.name


def _run_named(config: SweepConfig, name: str | None) -> str:
    found = None
    if name is not None:
        found = next(cell for cell in cells(config) if _name(cell) == name)
    return _run_task(config, found)


def _run_task(config: SweepConfig, cell: Cell | None) -> str:
    """Train and record one cell, or measure the baseline."""
    assets = _assets(config)
    if cell is None:
        _write_baseline(config, assets)
        return "ok"
    status, message, finished, best = "ok", None, None, None
    try:
        finished, best = _train(cell, assets)
    except DivergedError as error:
        status, message = "diverged", str(error)
    except BestOfNError as error:
        status, message = "failed", str(error)
    weights_kept = status == "ok" and config.keep_checkpoints
    if status == "ok" and not config.keep_checkpoints:
        shutil.rmtree(cell.config.out, ignore_errors=True)
    write_json(
        cell.directory / RECORD,
        {
            **provenance(cell.config.model_dump(mode="json")),
            "cell": {
                "objective": cell.objective,
                "variant": cell.variant,
                "parameter": cell.parameter,
                "value": cell.value,
                "seed": cell.seed,
            },
            "status": status,
            "message": message,
            "row": None if finished is None or finished.row is None else finished.row.as_dict(),
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


def _train(cell: Cell, assets: Any) -> tuple[Any, dict[str, Any] | None]:
    from training.evaluation import best_of_policy
    from training.run import train

    measured: list[Any] = []
    finished = train(cell.objective, cell.config, assets, measured.extend)
    if not measured:
        return finished, None
    win_rate, reward = best_of_policy(measured, assets.heldout_reference, BEST_OF_TUNED)
    return finished, {"n": BEST_OF_TUNED, "win_rate": asdict(win_rate), "reward": asdict(reward)}


def _write_baseline(config: SweepConfig, assets: Any) -> None:
    from training.evaluation import evaluation_rows

    rows = evaluation_rows(assets.heldout_reference, {}, 4)
    revisions = {
        "policy": assets.identity["policy_revision"],
        "reward": assets.reward.revision,
        **({} if assets.gold is None else {"gold": assets.gold.revision}),
    }
    write_json(
        config.out / BASELINE,
        {
            **provenance(config.model_dump(mode="json")),
            "settings": _baseline_settings(config),
            "title": config.title,
            "prompts": len(assets.heldout),
            "revisions": revisions,
            "rows": [row.as_dict() for row in rows],
        },
    )
