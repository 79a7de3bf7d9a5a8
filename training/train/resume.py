"""The resumable states of an unfinished run: the newest two, each whole or not there at all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from training.outputs.identity import read_json_record
from vbon.storage.atomic import partial_path, recover_directory, replacing_directory, write_json
from vbon.storage.checksums import CHECKSUMS, checksums_of, find_damage, is_sealed, sealed

logger = logging.getLogger(__name__)

RUN, WEIGHTS, KEPT = "run.json", "accelerate", 2


@dataclass(frozen=True, slots=True)
class State:
    """One of them.

    Attributes:
        run: what was saved with it: identity and history of the run.
    """

    directory: Path
    run: Mapping[str, Any]


class States:
    """Saves and finds them; with several processes, all call the same methods in the same order.

    Args:
        directory: of this run alone; holds ``step-000010`` and the like.
        accelerator: knows weights, optimizer and random numbers.
    """

    def __init__(self, directory: Path, accelerator: Any) -> None:
        self.directory, self._accelerator = directory, accelerator

    def save(self, step: int, run: Mapping[str, Any]) -> None:
        """Write a state after so many steps; every process has its part in it.

        Raises:
            ExportError: the file system refused; earlier states are whole.
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

    def newest(self) -> State | None:
        """The newest one that is as it was written; damaged ones are named in the log."""
        step = [self._newest_step() if self._accelerator.is_main_process else None]
        [found] = broadcast_object_list(step)
        if found is None:
            return None
        run = read_json_record(self._path(found) / RUN)
        return None if run is None else State(self._path(found), run)

    def load(self, state: State) -> None:
        """Put weights, optimizer and random numbers back."""
        self._accelerator.load_state(str(state.directory / WEIGHTS))

    def clear(self) -> None:
        """Remove them all."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:06d}"

    def _steps(self) -> list[int]:
        """Newest first."""
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
            logger.warning("no state in %s is whole; starting over", self.directory)
        return None

    def _recover(self) -> None:
        """Put back what a kill between two renames left aside."""
        for left in self.directory.glob(".step-*"):
            recover_directory(self.directory / left.name[1:].rpartition(".")[0])

    def _drop_all_but(self, step: int) -> None:
        """Keep that one and the one before; later ones were damaged when the run resumed."""
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
        return f"{error.filename} cannot be read: {error.strerror}"
