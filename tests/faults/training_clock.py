"""A clock that jumps: a day back in the middle of a run, and files dated before what they came from."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
from pathlib import Path

from tests.commands import Fault, KillAtWrite, flags, run
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.training_faults import checkpoint_difference, copy_cache, quick_config, settle
from training.configs import EvaluateConfig

PROMISE = (
    "A clock that jumps back or ahead, in a run or between two, changes no result: what is finished, "
    "fresh or to be resumed is told by content."
)
DAY_S = 86_400


async def inject(stage: Stage) -> Tally:
    """A run under a jumping clock, its continuation among files of odd dates, stale look-alikes."""
    return await asyncio.to_thread(_inject, stage)


def _inject(stage: Stage) -> Tally:
    tally, folder = Tally(), stage.scratch / "clock"
    folder.mkdir()
    copy_cache(stage.sandbox, folder)
    settle(tally, run(folder, _train(stage, folder, "whole")), None)
    _killed_and_resumed(stage, tally, folder)
    _look_alike_cache(stage, tally, folder)
    _evaluation(stage, tally, folder)
    return tally


def _train(stage: Stage, folder: Path, out: str, **changes: object) -> list[str]:
    config = quick_config(stage.sandbox, folder / out, cache=folder / "cache.jsonl", **changes)
    return ["vbon", *flags(config)]


def _jump_back() -> None:
    """Make every second reading of the clock a day earlier, from now on."""
    read, turns = time.time, itertools.count()
    time.time = lambda: read() - DAY_S * (next(turns) % 2)
    time.time_ns = lambda: int(time.time() * 1e9)


def _date(folder: Path, seconds: float) -> None:
    """Every other file below dated so many seconds from now, the rest the other way."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        when = time.time() + (seconds if number % 2 else -seconds)
        os.utime(path, (when, when))


def _killed_and_resumed(stage: Stage, tally: Tally, folder: Path) -> None:
    jump: Fault = _jump_back
    export = KillAtWrite(folder / ".vbon.partial", at=1, kinds=frozenset({"os.mkdir"}))
    killed = run(folder, _train(stage, folder, "vbon"), jump, export)
    tally.asked += 1
    if killed.code == -9:
        tally.left += 1
    else:
        tally.lost.append(f"not killed: {killed.said[-300:]}")
    for days in (400, -400):
        _date(folder, days * DAY_S)
    ended = run(folder, _train(stage, folder, "vbon"), jump)
    if "resuming after step 2" not in ended.said:
        tally.asked += 1
        tally.lost.append(f"the newest state was not taken: {ended.said[-300:]}")
    settle(tally, ended, checkpoint_difference(folder / "vbon", folder / "whole"))


def _look_alike_cache(stage: Stage, tally: Tally, folder: Path) -> None:
    """Two rewards change places: the same size, and the same dates by the clock's doing."""
    cache = folder / "cache.jsonl"
    dates, content = cache.stat(), cache.read_bytes()
    lines = content.splitlines(keepends=True)
    cache.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    os.utime(cache, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    ended = run(folder, _train(stage, folder, "other"))
    settle(tally, ended, "columns of another file were taken", "cache named")
    cache.write_bytes(content)
    ended = run(folder, _train(stage, folder, "vbon"))  # finished: content is what counts
    settle(tally, ended, checkpoint_difference(folder / "vbon", folder / "whole"))


def _evaluation(stage: Stage, tally: Tally, folder: Path) -> None:
    """Evaluate a checkpoint, then another one in its place that has a much earlier date."""
    config = EvaluateConfig(
        policy=str(stage.sandbox / "policy"), checkpoints={"vbon": str(folder / "vbon")},
        reward=str(stage.sandbox / "reward"), gold=None, out=folder / "evaluation",
        prompts=stage.sandbox / "prompts" / "heldout.jsonl", num_samples=4, reference_samples=16,
        policy_samples=4, max_new_tokens=12,
    )  # fmt: skip
    named = [f"--checkpoints=vbon={folder / 'vbon'}"]
    command = ["evaluate", *_without(flags(config), "--checkpoints"), *named]
    first = run(folder, command)
    settle(tally, first, None if "kept" not in first.said else "nothing was there to keep")
    again = run(folder, command)
    settle(tally, again, None if "kept" in again.said else "measured twice")
    shutil.rmtree(folder / "vbon")
    run(folder, _train(stage, folder, "vbon", seed=1))
    _date(folder / "vbon", -400 * DAY_S)
    _date(folder / "evaluation", 400 * DAY_S)
    anew = run(folder, command)
    settle(tally, anew, "the old figures were kept" if "kept" in anew.said else None)


def _without(arguments: list[str], option: str) -> list[str]:
    at = arguments.index(option)
    return arguments[:at] + arguments[at + 2 :]
