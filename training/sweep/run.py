"""The ``sweep`` command: trains and measures every cell of a grid; an interrupted sweep continues."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import closing

from training.cluster.session import check_ray
from training.configs import SweepConfig
from training.sweep.baseline import baseline_is_current
from training.sweep.cell import cell_is_current
from training.sweep.choices import CHOICES, Choices, read_choices
from training.sweep.grid import GridCell, grid_cells
from training.sweep.search import check_search, choose_settings, chosen_cells, search_config
from training.sweep.shared_inputs import forget_shared_inputs, shared_inputs
from training.sweep.tasks import Task, run_named_task, run_task
from training.worker_pool import worker_pool
from vbon.errors import DataError, InvalidInputError
from vbon.progress_bar import ProgressBar
from vbon.storage.atomic import write_json
from vbon.storage.locks import sole_writer

logger = logging.getLogger(__name__)


def run_sweep(config: SweepConfig) -> None:
    """Train the cells that have no current record; a failed cell does not stop the others.

    With validation prompts, the grid is searched first, and only chosen settings are trained for the report.

    Raises:
        InvalidInputError: the grid is invalid, held-out prompts are missing, or a search is unequal.
        DataError: some cells failed; raised after all others have ended.
        CheckpointError, DataError, RewardError: an input of all cells is missing or damaged.
    """
    if config.heldout is None:
        raise InvalidInputError("a sweep needs held-out prompts; pass --heldout", field="heldout")
    if config.backend == "ray":
        check_ray()
    with sole_writer(config.out):
        if config.validation is not None:
            _train_cells(config, chosen_cells(config, _search(config)))
        elif config.choices is not None:
            choices = read_choices(config.choices)
            write_json(config.out / CHOICES, choices.model_dump(mode="json"))
            _train_cells(config, chosen_cells(config, choices))
        else:
            _train_cells(config, grid_cells(config))


def _search(config: SweepConfig) -> Choices:
    """Try every setting of the grid on the validation prompts, and choose."""
    search = search_config(config)
    cells = grid_cells(search)
    forget_shared_inputs()
    check_search(config, cells, shared_inputs(search))
    _train_cells(search, cells, title="search")
    return choose_settings(config, cells)


def _train_cells(config: SweepConfig, cells: Sequence[GridCell], title: str = "sweep") -> None:
    """Train or measure the cells that need it, and the baseline.

    Raises:
        DataError: some cells failed; raised after all others have ended.
    """
    forget_shared_inputs()
    shared = shared_inputs(config)
    todo = [cell for cell in cells if not cell_is_current(cell, shared)]
    logger.info("%s: %d cells, %d to train or to measure", title, len(cells), len(todo))
    baseline: list[Task] = [] if baseline_is_current(config, shared) else [None]
    failed = []
    with ProgressBar(title, len(cells), done=len(cells) - len(todo)) as progress:
        for cell, status in _results(config, [*baseline, *todo]):
            if cell is None:
                continue
            progress.advance(1, f"{cell.name}: {status}")
            if status == "failed":
                failed.append(cell.name)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed[:5])}; their record.json in "
            f"{config.out / 'cells'} gives the reason"
        )


def _results(config: SweepConfig, tasks: Sequence[Task]) -> Iterator[tuple[Task, str]]:
    """Run the tasks, here, in ``config.jobs`` processes or on Ray, and yield each with its status."""
    if config.backend == "ray":
        from training.sweep.ray_cells import Job, ray_results

        at_once = config.jobs if "jobs" in config.model_fields_set else None
        with closing(ray_results(config, [Job(config, task) for task in tasks], at_once)) as found:
            yield from found
        return
    if config.jobs == 1:
        for task in tasks:
            yield task, run_task(config, task)
        return
    with worker_pool(config.jobs) as pool:
        futures: dict[Future[str], Task] = {
            pool.submit(run_named_task, config, None if task is None else task.name): task
            for task in tasks
        }
        for future in as_completed(futures):
            yield futures[future], future.result()
