"""Removal of old checkpoints, which would fill the disk: those that nothing may go back to."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from vbon.distil.loop.service import ServedRollout
from vbon.distil.loop.state import LoopState
from vbon.storage.atomic import sync_to_disk, write_errors

CHECKPOINT = "checkpoint"
# A checkpoint gets this name first, in one step, so a removal that is killed leaves none that looks whole.
REMOVED = ".checkpoint.removed"


def prune(
    rounds: Path, state: LoopState, rollout: ServedRollout | None, keep: int | None
) -> tuple[list[str], int]:
    """Remove the checkpoints of finished rounds but the newest and those that are needed.

    Decisions and figures of all rounds stay. What a killed removal has left is removed first.

    Args:
        rounds: the directory of all rounds.
        keep: number of the newest checkpoints to keep; ``None``: all.

    Returns:
        The ids of the removed ones, and their bytes.

    Raises:
        ExportError: the directory cannot be changed.
    """
    done = [one.id for one in state.rounds if one.step == "done"]
    with write_errors(rounds):
        freed = sum(_remove(rounds / name / REMOVED) for name in done)
        kept = [name for name in done if (rounds / name / CHECKPOINT).is_dir()]
        needed = needed_checkpoints(state, rollout)
        old = [] if keep is None else [name for name in kept[:-keep] if name not in needed]
        for name in old:
            place = rounds / name / REMOVED
            (rounds / name / CHECKPOINT).rename(place)
            sync_to_disk(place.parent)
            freed += _remove(place)
    return old, freed


def needed_checkpoints(state: LoopState, rollout: ServedRollout | None) -> Collection[str]:
    """The checkpoints that answer, that may answer, or that a rollback goes to.

    They are the live one, the one that is rolled out, those that wait, and the newest other one that was
    live. Without a service, they are the newest two that passed.
    """
    if rollout is None:
        return {one.id for one in [one for one in state.trained if one.verdict == "promote"][-2:]}
    needed = {rollout.live, rollout.next}
    needed |= {
        one.id for one in rollout.checkpoints if one.status in ("waiting", "rolling", "live")
    }
    before = [one.id for one in rollout.checkpoints if one.was_live and one.id != rollout.live]
    retired = [one.id for one in rollout.checkpoints if one.was_live and one.status == "retired"]
    # The newest come first.
    needed |= {*before[:1], *retired[:1]}
    return {name for name in needed if name is not None}


def _remove(place: Path) -> int:
    """Remove a directory if it is there; returns the bytes of its files."""
    if not place.is_dir():
        return 0
    size = sum(file.lstat().st_size for file in place.rglob("*") if not file.is_dir())
    shutil.rmtree(place)
    return size
