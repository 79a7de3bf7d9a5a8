"""The same command twice at the same time, and one beside a run that hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from tests.commands import flags, run, running
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.tiny import sample_config
from tests.training_faults import (
    Difference,
    cache_difference,
    checkpoint_difference,
    quick_config,
    settle,
)

PROMISE = (
    "Of two processes that write one output, one does; the other finds it finished, or names the "
    "process that writes it. A run that hangs or is killed spoils nothing for the next."
)


async def inject(stage: Stage) -> Tally:
    """Run pairs of training and of sampling commands; then one beside a process that hangs."""
    return await asyncio.to_thread(_inject, stage)


def _inject(stage: Stage) -> Tally:
    tally, folder = Tally(), stage.scratch / "two-writers"
    folder.mkdir()

    def train(out: str) -> list[str]:
        return ["vbon", *flags(quick_config(stage.sandbox, folder / out))]

    settle(tally, run(folder, train("whole")), None)
    for pair in range(stage.count(20)):
        out = f"vbon-{pair}"
        _together(tally, folder, train(out), checkpoint_difference, out, folder / "whole")
        out = f"cache-{pair}.jsonl"
        sample = ["sample", *flags(sample_config(stage.sandbox, folder / out))]
        whole = stage.sandbox / "cache.jsonl"
        _together(tally, folder, sample, cache_difference, out, whole)
    _beside_one_that_hangs(tally, folder, train("hangs"))
    return tally


def _together(
    tally: Tally, folder: Path, arguments: Sequence[str], difference: Difference, out: str, whole: Path
) -> None:  # fmt: skip
    with running(folder, arguments) as one, running(folder, arguments) as two:
        ended = [command.wait() for command in (one, two)]
    for end in ended:
        if end is None:
            tally.asked += 1
            tally.lost.append("hangs")
        else:
            settle(tally, end, difference(folder / out, whole), "named the other")
    if not any(end is not None and end.code == 0 for end in ended):
        tally.asked += 1
        tally.lost.append("neither wrote it")


def _beside_one_that_hangs(tally: Tally, folder: Path, arguments: Sequence[str]) -> None:
    """Stopped as soon as it holds the output; the second says so, the first goes on to its end."""
    with running(folder, arguments) as first:
        while not (folder / ".hangs.lock").exists() or not (folder / ".hangs.state").exists():
            time.sleep(0.01)
            if first.process.exitcode is not None:
                break
        os.killpg(first.process.pid, signal.SIGSTOP)
        second = run(folder, arguments)
        settle(tally, second, "wrote beside the other", "named the other")
        if f"pid {first.process.pid}" not in (second.clear_error or ""):
            tally.asked += 1
            tally.lost.append(f"the writer is not named: {second.said[-300:]}")
        os.killpg(first.process.pid, signal.SIGCONT)
        ended = first.wait()
    if ended is not None:
        settle(tally, ended, checkpoint_difference(folder / "hangs", folder / "whole"))
