"""kill -9 of ``sandbox``, the first step of ``scripts/make-sandbox``, at its writes."""

from __future__ import annotations

import asyncio

from tests.commands import flags
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.training_faults import Job, kill_job, sandbox_difference
from training.configs import SandboxConfig

PROMISE = (
    "Making the sandbox, killed (-9) at any moment, goes on by the same command, makes no finished "
    "part again, and ends in the very models of an unbroken run."
)
IN_FULL_ONLY = True  # half a minute; its machinery is that of the other killed commands


async def inject(stage: Stage) -> Tally:
    """A tiny one; of its other steps, sample and vbon are killed by faults of their own; evaluate by none."""
    return await asyncio.to_thread(_inject, stage)


def _inject(stage: Stage) -> Tally:
    job = Job(
        arguments=lambda folder: ["sandbox", *flags(SandboxConfig(
            out=folder / "sandbox", num_reviews=1000, policy_texts=100, policy_hidden=64,
            policy_layers=1, train_prompts=3, heldout_prompts=3, max_length=48,
        ))],
        output="sandbox",
        difference=sandbox_difference,
        folder=stage.scratch / "killed-sandbox",
    )  # fmt: skip
    tally = Tally()
    kill_job(job, tally, stage.count(50), stage.count(5, least=0))
    return tally
