"""kill -9 of ``sample``, at its writes and at random moments, until it is done."""

from __future__ import annotations

import asyncio

from tests.commands import flags
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.tiny import sample_config
from tests.training_faults import Job, cache_difference, kill_job

PROMISE = (
    "Sampling killed (-9) at any moment goes on by the same command, draws no finished prompt again, "
    "and ends in the very lines of an unbroken run."
)


async def inject(stage: Stage) -> Tally:
    """Kill the run at its writes; CI tries some of them, a full test run all."""
    return await asyncio.to_thread(_inject, stage)


def _inject(stage: Stage) -> Tally:
    job = Job(
        arguments=lambda folder: [
            "sample", *flags(sample_config(stage.sandbox, folder / "cache.jsonl")),
        ],
        output="cache.jsonl",
        difference=cache_difference,
        folder=stage.scratch / "killed-sampling",
        kept={"cache.jsonl.meta.json"},
    )  # fmt: skip
    tally = Tally()
    kill_job(job, tally, stage.count(100, least=3), stage.count(20))
    return tally
