"""kill -9 of a training run, at its writes and at random moments, until it is done."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.commands import flags
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.training_faults import Job, checkpoint_difference, copy_cache, kill_job, quick_config

PROMISE = (
    "A training run killed (-9) at any moment, any number of times, goes on by the same command and "
    "ends in the very bytes of an unbroken run; a checkpoint is whole or not there."
)
CACHE = {"cache.jsonl", "cache.jsonl.meta.json", "cache.jsonl.columns"}


async def inject(stage: Stage) -> Tally:
    """The cache lies beside the output, so that its compilation is killed too."""
    return await asyncio.to_thread(_inject, stage)


def _inject(stage: Stage) -> Tally:
    def arguments(folder: Path) -> list[str]:
        config = quick_config(
            stage.sandbox, folder / "vbon", cache=folder / "cache.jsonl",
            heldout=stage.sandbox / "prompts" / "heldout.jsonl",
        )  # fmt: skip
        return ["vbon", *flags(config)]

    job = Job(
        arguments=arguments,
        output="vbon",
        difference=checkpoint_difference,
        folder=stage.scratch / "killed",
        prepare=lambda folder: copy_cache(stage.sandbox, folder),
        kept=CACHE,
    )
    tally = Tally()
    kill_job(job, tally, stage.count(200, least=4), stage.count(20))
    return tally
