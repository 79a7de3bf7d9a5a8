"""A disk that is full at some moment of a run: a real one, mounted with so many bytes and no more."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.commands import CONTEXT, LIMIT_S, Ended, command_here, flags, run
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.tiny import sample_config
from tests.training_faults import (
    cache_difference,
    checkpoint_difference,
    copy_cache,
    quick_config,
    settle,
)

PROMISE = (
    "On a full disk a run ends with exit status 1 and a line that names the file and what to do; "
    "what was there before is whole, and once there is room the same command goes on to the same end."
)
NAMES = "same command again"
# Below and above what the runs need, in bytes.
SMALLEST, LARGEST = 4 << 10, 4 << 20
CLONE_NEWNS, MS_REMOUNT, MS_REC, MS_PRIVATE = 0x20000, 32, 0x4000, 0x40000


async def inject(stage: Stage) -> Tally:
    """Try disks of sizes at equal ratios, as small files are written often and large ones rarely."""
    return await asyncio.to_thread(_inject, stage)


@dataclass(frozen=True)
class Trial:
    """A training and a sampling run into ``folder``, where a finished checkpoint already lies.

    Attributes:
        before: that checkpoint, of other settings.
    """

    sandbox: Path
    before: Path
    folder: Path

    @property
    def train(self) -> list[str]:
        """Replaces the checkpoint."""
        config = quick_config(
            self.sandbox, self.folder / "vbon", cache=self.folder / "cache.jsonl", replace=True
        )
        return ["vbon", *flags(config)]

    @property
    def sample(self) -> list[str]:
        """Draws a cache of its own."""
        return ["sample", *flags(sample_config(self.sandbox, self.folder / "own.jsonl"))]

    def prepare(self) -> None:
        """Put there what is there before."""
        copy_cache(self.sandbox, self.folder)
        shutil.copytree(self.before, self.folder / "vbon")


def _inject(stage: Stage) -> Tally:
    folder = stage.scratch / "full-disk"
    before = folder / "before"
    before.mkdir(parents=True)
    tally = Tally()
    unbroken = Trial(stage.sandbox, before, folder)
    other = quick_config(stage.sandbox, before, seed=1)
    run(folder, ["vbon", *flags(other)])
    copy_cache(stage.sandbox, folder)
    for arguments in (unbroken.train, unbroken.sample):
        settle(tally, run(folder, arguments), None)
    sizes = np.geomspace(SMALLEST, LARGEST, stage.count(150, least=3)).astype(int)
    mounted = _may_mount(folder)
    if not mounted:
        tally.notes.append("no right to mount here: files were limited in size instead")
    for number, size in enumerate(sizes):
        place = folder / f"disk-{number}"
        place.mkdir()
        trial = Trial(stage.sandbox, before, place)
        results = place.with_name(f"results-{number}")
        (_on_small_disk if mounted else _with_small_files)(trial, int(size), results)
        _judge(tally, results, before, folder)
    return tally


def _judge(tally: Tally, results: Path, before: Path, whole: Path) -> None:
    """Judge the runs on one disk: first those on the full disk, then those after space was freed."""
    for name in ("train", "sample"):
        full, room = (_ended(results / f"{name}-{when}.log") for when in ("full", "room"))
        if full.clear_error is not None and NAMES not in full.clear_error:
            tally.lost.append(f"no remedy in: {full.clear_error}")
            tally.asked += 1
        settle(tally, full, None, "full disk")
        after = checkpoint_difference(results / "vbon-full", before)
        if name == "train" and full.code != 0 and after is not None:
            tally.lost.append(f"the previous checkpoint is spoilt: {after}")
            tally.asked += 1
        apart = (
            checkpoint_difference(results / "vbon-room", whole / "vbon")
            if name == "train"
            else cache_difference(results / "own.jsonl", whole / "own.jsonl")
        )
        settle(tally, room, apart)


def _ended(log: Path) -> Ended:
    code, _, said = log.read_text(errors="replace").partition("\n")
    return Ended(int(code), said, 0.0)


# --- a disk of so many bytes ---


def _may_mount(folder: Path) -> bool:
    process = CONTEXT.Process(target=_mount_private, args=(folder, 1 << 20))
    process.start()
    process.join(LIMIT_S)
    return process.exitcode == 0


def _on_small_disk(trial: Trial, size: int, results: Path) -> None:
    """Run in a process whose mounts no other process sees; they vanish when it ends."""
    process = CONTEXT.Process(target=_run_on_small_disk, args=(trial, size, results))
    process.start()
    process.join(4 * LIMIT_S)
    if process.exitcode != 0:
        process.kill()
        raise RuntimeError(f"the process with a small disk ended with {process.exitcode}")


def _run_on_small_disk(trial: Trial, size: int, results: Path) -> None:
    results.mkdir()
    there = [*trial.before.rglob("*"), *trial.sandbox.glob("cache.jsonl*")]
    used = sum(file.stat().st_size + 4096 for file in there if file.is_file())
    _mount_private(trial.folder, size + used)
    trial.prepare()
    _both(trial, results, "full")
    shutil.copytree(trial.folder / "vbon", results / "vbon-full")
    _mount(trial.folder, 1 << 30, MS_REMOUNT)
    _both(trial, results, "room")
    shutil.copytree(trial.folder / "vbon", results / "vbon-room")
    shutil.copy2(trial.folder / "own.jsonl", results / "own.jsonl")


def _both(trial: Trial, results: Path, when: str) -> None:
    for name, arguments in (("train", trial.train), ("sample", trial.sample)):
        _forked(arguments, results / f"{name}-{when}.log")


def _forked(arguments: Sequence[str], log: Path) -> None:
    """Run a command in a child of this process; status and output go to ``log``."""
    child = os.fork()
    if child == 0:
        command_here(arguments, log)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log.write_text(f"{code}\n{log.read_text(errors='replace')}")


def _mount_private(folder: Path, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    _mount(folder, size)


def _mount(folder: Path, size: int, flag: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode()
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", flag, options) != 0:
        raise OSError(ctypes.get_errno(), "mount")


# --- the next best: files of at most so many bytes ---


def _with_small_files(trial: Trial, size: int, results: Path) -> None:
    results.mkdir()
    trial.prepare()
    for when, faults in (("full", [partial(_limit_files, size // 8)]), ("room", [])):
        for name, arguments in (("train", trial.train), ("sample", trial.sample)):
            ended = run(trial.folder.parent, arguments, *faults)
            (results / f"{name}-{when}.log").write_text(f"{ended.code}\n{ended.said}")
        shutil.copytree(trial.folder / "vbon", results / f"vbon-{when}")
    shutil.copy2(trial.folder / "own.jsonl", results / "own.jsonl")


def _limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
