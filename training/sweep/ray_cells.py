"""Trains the cells of sweeps in the workers of a Ray cluster, which write the same records.

A worker process stays for further cells, with its models loaded. A cell whose worker dies is tried once more;
if that one dies too, the cell has failed.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from training.cluster.session import check_room, enter_directory, ray_session, workers_that_fit
from training.configs import CellWorkers, SweepConfig
from training.sweep.cell import record_failure
from training.sweep.shared_inputs import forget_shared_inputs, inputs_generation, shared_inputs
from training.sweep.tasks import Task, run_named_task
from vbon.errors import DataError, VbonError

logger = logging.getLogger(__name__)

ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Job:
    """A task of a sweep, and how often it has been begun."""

    config: SweepConfig
    task: Task
    attempt: int = 0

    @property
    def name(self) -> str:
        """The cell's name, for people."""
        return "the baseline" if self.task is None else self.task.name


def ray_results(
    place: CellWorkers, jobs: Sequence[Job], at_once: int | None = None
) -> Generator[tuple[Task, str], None, None]:
    """Do the jobs on the cluster, and yield each task with its status as it ends.

    Args:
        at_once: jobs at a time; as many as the cluster has room for by default.

    Raises:
        VbonError: an input of all cells is missing or damaged, as without Ray.
        InvalidInputError: no machine is large enough for a worker.
        DataError: the workers that measured a baseline died.
    """
    if not jobs:
        return
    import ray
    from ray.exceptions import RayError, RayTaskError

    with ray_session():
        work = ray.remote(do_in_worker).options(
            num_cpus=place.worker_cpus, num_gpus=place.worker_gpus, max_retries=0
        )
        check_room(place.worker_cpus, place.worker_gpus)
        most = at_once or workers_that_fit(place.worker_cpus, place.worker_gpus, len(jobs))
        waiting, running = deque(jobs), dict[Any, Job]()
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    job = waiting.popleft()
                    name = None if job.task is None else job.task.name
                    started = work.remote(job.config, name, inputs_generation(), os.getcwd())
                    running[started] = job
                (ended,), _ = ray.wait(list(running), num_returns=1)
                job = running.pop(ended)
                try:
                    found = ray.get(ended)
                except RayTaskError:
                    raise
                except RayError as death:
                    if (again := _after_death(job, death)) is not None:
                        waiting.appendleft(again)
                        continue
                    found = "failed"
                if isinstance(found, VbonError):
                    raise found
                yield job.task, found
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _after_death(job: Job, death: Exception) -> Job | None:
    """The job once more; ``None`` if its cell has failed, which its record then says.

    Raises:
        DataError: it was the baseline's second attempt.
    """
    why = str(death).splitlines()[0][:300]
    if job.attempt + 1 < ATTEMPTS:
        logger.warning("the Ray worker of %s died; it is tried once more: %s", job.name, why)
        return Job(job.config, job.task, job.attempt + 1)
    message = f"its Ray worker died {ATTEMPTS} times (out of memory?): {why}"
    if job.task is None:
        raise DataError(f"the baseline could not be measured: {message}") from death
    record_failure(job.config, job.task, shared_inputs(job.config), message)
    return None


def do_in_worker(
    config: SweepConfig, name: str | None, generation: str, directory: str
) -> str | VbonError:
    """Do a task in a worker; an error of the project is returned, because Ray would wrap it.

    Args:
        generation: of the command's shared inputs; those that the worker has of another one may be stale.
        directory: that of the command, so that relative paths lead to its files.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    import torch

    torch.set_num_threads(max(1, int(config.worker_cpus)))
    if inputs_generation() != generation:
        forget_shared_inputs(generation)
    try:
        enter_directory(directory, config.out)
        return run_named_task(config, name)
    except VbonError as error:
        return error
