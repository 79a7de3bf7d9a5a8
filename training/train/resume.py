"""Resumable states of an unfinished run; the newest two are kept."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from training.outputs.identity import is_same_output, read_json_record
from vbon.storage.atomic import (
    beside,
    partial_path,
    recover_directory,
    replacing_directory,
    write_json,
)
from vbon.storage.checksums import CHECKSUMS, checksums_of, find_damage, is_sealed, sealed

logger = logging.getLogger(__name__)

RUN, WEIGHTS, KEPT = "run.json", "accelerate", 2


@dataclass(frozen=True, slots=True)
class ResumableState:
    """A saved state of an unfinished run.

    Attributes:
        run: the ``identity``, the ``history`` and ``imitated`` of the run when it was saved.
    """

    directory: Path
    run: Mapping[str, Any]


class ResumableStates:
    """Saves and finds the states of one run.

    With several processes, all of them call the same methods in the same order. accelerate writes the
    weights, optimizer and random numbers. Its own rotation (``ProjectConfiguration(total_limit=2)``) is
    not used: it deletes the oldest state before the new one is complete, and takes a state that a kill
    left half written for the newest (docs/log.md).

    Args:
        directory: holds ``step-000010`` and so on, of this run only.
        accelerator: knows the weights, optimizer and random numbers.
    """

    def __init__(self, directory: Path, accelerator: Any) -> None:
        self.directory, self._accelerator = directory, accelerator

    def save(self, step: int, run: Mapping[str, Any]) -> None:
        """Save a state after ``step`` steps; every process writes its part.

        Raises:
            ExportError: the file system refused to write; earlier states are intact.
        """
        accelerator, target = self._accelerator, self._path(step)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with replacing_directory(target) as directory:
                accelerator.wait_for_everyone()
                accelerator.save_state(str(directory / WEIGHTS))
                accelerator.wait_for_everyone()
                write_json(directory / RUN, run)
                write_json(
                    directory / CHECKSUMS,
                    sealed({"files": checksums_of(directory, recursive=True)}),
                )
            self._drop_all_but(step)
        else:
            accelerator.wait_for_everyone()
            accelerator.save_state(str(partial_path(target) / WEIGHTS))
            accelerator.wait_for_everyone()
        accelerator.wait_for_everyone()

    def newest(self) -> ResumableState | None:
        """The newest undamaged state, or ``None``; damaged ones are named in the log."""
        step = [self._newest_step() if self._accelerator.is_main_process else None]
        [found] = broadcast_object_list(step)
        if found is None:
            return None
        run = read_json_record(self._path(found) / RUN)
        return None if run is None else ResumableState(self._path(found), run)

    def load(self, state: ResumableState) -> None:
        """Restore weights, optimizer and random numbers."""
        self._accelerator.load_state(str(state.directory / WEIGHTS))

    def clear(self) -> None:
        """Remove all states; does nothing except in the main process."""
        if self._accelerator.is_main_process:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:06d}"

    def _steps(self) -> list[int]:
        """Steps with a state, newest first."""
        names = (path.name.removeprefix("step-") for path in self.directory.glob("step-*"))
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _newest_step(self) -> int | None:
        self._recover()
        steps = self._steps()
        for step in steps:
            wrong = _damage(self._path(step))
            if wrong is None:
                return step
            logger.warning("%s; not resuming after step %d", wrong, step)
        if steps:
            logger.warning("every state in %s is damaged; starting over", self.directory)
        return None

    def _recover(self) -> None:
        """Finish or undo renames that a kill interrupted."""
        for left in self.directory.glob(".step-*"):
            recover_directory(self.directory / left.name[1:].rpartition(".")[0])

    def _drop_all_but(self, step: int) -> None:
        """Keep this state and the one before it.

        States of later steps, if any, are damaged: otherwise the run would have resumed after them.
        """
        earlier = [other for other in self._steps() if other <= step]
        for other in set(self._steps()) - set(earlier[:KEPT]):
            shutil.rmtree(self._path(other), ignore_errors=True)


def _damage(directory: Path) -> str | None:
    try:
        recorded = read_json_record(directory / CHECKSUMS)
        if recorded is None or not is_sealed(recorded):
            return f"{directory / CHECKSUMS} is missing or damaged"
        return find_damage(directory, recorded["files"])
    except OSError as error:
        return f"cannot read {error.filename}: {error.strerror}"


def state_path(out: Path) -> Path:
    """The directory of an unfinished run's states, beside its output."""
    return beside(out, "state")


def resume(
    states: ResumableStates, identity: dict[str, Any], *, replace: bool
) -> Mapping[str, Any]:
    """Restore the newest state and return its ``run``, which is empty if the run starts anew.

    Raises:
        DataError: the state belongs to a run with other settings, and ``replace`` is off.
    """
    state = states.newest()
    if state is None:
        return {}
    if not is_same_output(states.directory, state.run["identity"], identity, replace=replace):
        states.clear()
        return {}
    states.load(state)
    logger.info("resuming after step %d", len(state.run["history"]))
    return state.run


def remove_states_of(out: Path, identity: dict[str, Any]) -> None:
    """Remove states that were left when a run was killed after its export.

    States of a run with another identity are kept, because that run may still be resumed.
    """
    directory = state_path(out)
    runs = [read_json_record(path) for path in directory.glob(f"*/{RUN}")]
    if all(run is None or run.get("identity") == identity for run in runs):
        shutil.rmtree(directory, ignore_errors=True)
