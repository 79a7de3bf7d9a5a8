"""Helpers of the training faults: kill a command, judge how it ended, compare its results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.commands import Ended, KillAtWrite, run, running
from tests.faults.tally import Tally
from tests.tiny import train_config
from training.configs import TrainConfig
from vbon.errors import CheckpointError
from vbon.storage.checkpoints import check_checkpoint
from vbon.storage.checksums import checksums_of

Difference = Callable[[Path, Path], str | None]
# They say when and how fast, and sum up the others.
TIMED = {"training.json", "history.jsonl", "sandbox.json"}
MOST_KILLS = 20


def settle(tally: Tally, ended: Ended, difference: str | None, error: str = "named") -> None:
    """Count a command that was left to end.

    Args:
        difference: between its result and that of an unbroken run, where it has one.
        error: what a clear error is counted as.
    """
    tally.asked += 1
    if ended.code == 0 and difference is None:
        tally.answered += 1
    elif ended.code == 0:
        tally.lost.append(f"another result: {difference}")
    elif ended.clear_error is not None:
        tally.errors[error] += 1
    else:
        tally.lost.append(f"exit {ended.code}: {ended.said[-600:]}")


def checkpoint_difference(ours: Path, theirs: Path) -> str | None:
    """The first difference between two trained checkpoints: their files, figures and steps."""
    try:
        check_checkpoint(str(ours), "causal-lm")
    except CheckpointError as error:
        return str(error)
    found, wanted = (_untimed(d) for d in (ours, theirs))
    return next((f"{ours}: {n}" for n in wanted if found.get(n) != wanted[n]), None)


def _untimed(directory: Path) -> dict[str, Any]:
    sums = {name: s for name, s in checksums_of(directory).items() if name not in TIMED}
    record = json.loads((directory / "training.json").read_text())
    rows = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    steps = [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows]
    return {**sums, "held-out figures": record["heldout"], "steps": steps}


def cache_difference(ours: Path, theirs: Path) -> str | None:
    """The first difference between two reward caches; the order of lines counts, as training uses it."""
    if not ours.is_file():
        return f"{ours} is missing"
    found, wanted = (path.read_bytes().splitlines() for path in (ours, theirs))
    if found == wanted:
        return None
    same = sorted(found) == sorted(wanted)
    return f"{ours} holds {'the lines in another order' if same else 'other lines'}"


def sweep_difference(ours: Path, theirs: Path) -> str | None:
    """The first difference between two sweeps: the baseline's and the cells' figures, and checkpoints."""
    for record in sorted(theirs.rglob("*.json")):
        if record.name not in {"record.json", "baseline.json"}:
            continue
        name = record.relative_to(theirs)
        if not (ours / name).is_file():
            return f"{ours / name} is missing"
        found, wanted = (json.loads((d / name).read_text()) for d in (ours, theirs))
        for key in ("rows", "row", "status", "best_of_tuned", "cell", "checkpoint"):
            if found.get(key) != wanted.get(key):
                return f"{ours / name}: {key}"
        if wanted.get("checkpoint"):
            apart = checkpoint_difference(
                ours / wanted["checkpoint"], theirs / wanted["checkpoint"]
            )
            if apart is not None:
                return apart
    return None


def sandbox_difference(ours: Path, theirs: Path) -> str | None:
    """The first difference between two sandboxes: bytes of models, tokenizers and prompts."""
    found, wanted = (
        {name: s for name, s in checksums_of(d, recursive=True).items() if name not in TIMED}
        for d in (ours, theirs)
    )
    return next((f"{ours}: {n}" for n in wanted if found.get(n) != wanted[n]), None)


@dataclass(frozen=True)
class Job:
    """A command to break, again and again, each time in a folder of its own.

    Attributes:
        arguments: of the command that writes into a folder.
        output: its name in that folder.
        prepare: puts into a folder what the command reads and may write beside.
        kept: names that may stay beside the output.
    """

    arguments: Callable[[Path], Sequence[str]]
    output: str
    difference: Difference
    folder: Path
    prepare: Callable[[Path], object] = lambda folder: None
    kept: set[str] = field(default_factory=set)

    def fresh(self, name: str) -> Path:
        """Create a folder to run the command in."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        self.prepare(folder)
        return folder

    def unbroken(self) -> tuple[Path, Ended, int]:
        """Run the command undisturbed; return its output, how it ended and its number of writes."""
        folder, journal = self.fresh("unbroken"), self.folder / "journal"
        ended = run(self.folder, self.arguments(folder), KillAtWrite(folder, journal=journal))
        if ended.code != 0:
            raise RuntimeError(ended.said)
        return folder / self.output, ended, len(journal.read_text().splitlines())

    def difference_to(self, folder: Path, whole: Path) -> str | None:
        """The first difference of a folder's result to the undisturbed one, leftover files included."""
        apart = self.difference(folder / self.output, whole)
        left = sorted({path.name for path in folder.iterdir()} - {self.output} - self.kept)
        return apart or (f"left behind: {left}" if left else None)


def kill_job(job: Job, tally: Tally, at_writes: int, at_random: int) -> None:
    """Kill the command (kill -9) at some of its writes, one per run, and at random moments.

    Every folder ends with a run left alone, which must make what the unbroken one made.
    """
    whole, unbroken, writes = job.unbroken()
    generator = np.random.default_rng(0)
    points = generator.choice(writes, min(writes, at_writes), replace=False) + 1
    for point in sorted(int(point) for point in points):
        folder = job.fresh(f"write-{point}")
        ended = run(job.folder, job.arguments(folder), KillAtWrite(folder, at=point))
        tally.asked += 1
        if ended.code == -9:
            tally.left += 1
        else:
            tally.lost.append(f"not killed at write {point}: exit {ended.code} {ended.said[-300:]}")
        _finish(job, tally, folder, whole)
    for episode in range(at_random):
        folder = job.fresh(f"random-{episode}")
        for _ in range(MOST_KILLS):
            with running(job.folder, job.arguments(folder)) as command:
                if command.wait(generator.uniform(0, 1.2 * unbroken.seconds)) is not None:
                    break
                command.kill()
                command.wait()
            tally.asked += 1
            tally.left += 1
        _finish(job, tally, folder, whole)
    tally.notes.append(f"{writes} writes in an unbroken run")


def _finish(job: Job, tally: Tally, folder: Path, whole: Path) -> None:
    ended = run(job.folder, job.arguments(folder))
    settle(tally, ended, job.difference_to(folder, whole))
    tally.recovered_s = max(tally.recovered_s or 0.0, ended.seconds)
    if not tally.lost:
        shutil.rmtree(folder)


def quick_config(sandbox: Path, out: Path, **changes: object) -> TrainConfig:
    """Three steps with a state after each but the last."""
    values: dict[str, object] = {
        "steps": 2, "warm_start_steps": 1, "checkpoint_every": 1, "heldout": None, **changes
    }  # fmt: skip
    return train_config(sandbox, out, **values)


def copy_cache(sandbox: Path, folder: Path) -> None:
    """The reward cache and its record, without what was compiled from it."""
    for name in ("cache.jsonl", "cache.jsonl.meta.json"):
        shutil.copy2(sandbox / name, folder / name)


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
