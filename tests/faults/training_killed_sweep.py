"""kill -9 of ``sweep``, at its writes and at random moments, until it is done."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.commands import flags
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.training_faults import Job, kill_job, sweep_difference
from training.configs import SweepConfig

PROMISE = (
    "A sweep killed (-9) at any moment goes on by the same command, trains no finished cell again, "
    "and ends in the very figures and weights of an unbroken one, with nothing left beside them."
)


async def inject(stage: Stage) -> Tally:
    """One process: its cells are training runs, which write in the same way."""
    return await asyncio.to_thread(_inject, stage)


def _inject(stage: Stage) -> Tally:
    def arguments(folder: Path) -> list[str]:
        sandbox = stage.sandbox
        config = SweepConfig(
            policy=str(sandbox / "policy"), reward=str(sandbox / "reward"),
            cache=sandbox / "cache.jsonl", heldout=sandbox / "prompts" / "heldout.jsonl",
            out=folder / "sweep", max_new_tokens=12, steps=3, prompts_per_step=4,
            samples_per_prompt=4, seeds=[0], reference_samples=16, policy_samples=4,
            checkpoint_every=1, grid=["vbon: num_samples=2; warm_start_steps=1", "dpo: beta=0.3"],
        )  # fmt: skip
        return ["sweep", *flags(config)]

    job = Job(
        arguments=arguments,
        output="sweep",
        difference=_difference,
        folder=stage.scratch / "killed-sweep",
    )
    tally = Tally()
    kill_job(job, tally, stage.count(100, least=2), stage.count(10))
    return tally


def _difference(ours: Path, theirs: Path) -> str | None:
    """States and what is half written have names with a dot in front, or end so."""
    left = [str(p.relative_to(ours)) for p in (*ours.rglob(".*"), *ours.rglob("*.partial"))]
    return sweep_difference(ours, theirs) or (f"left behind: {left}" if left else None)
