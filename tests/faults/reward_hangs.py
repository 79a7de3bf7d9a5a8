"""The reward model's process stops (SIGSTOP) in the middle of its work."""

from __future__ import annotations

import signal

from tests.faults.reward_killed import strike_worker
from tests.faults.stage import Stage
from tests.faults.tally import Tally

PROMISE = (
    "A reward worker that hangs is found, ended and started again; what it held gets an error, "
    "others go on."
)


async def inject(stage: Stage) -> Tally:
    """Stop it under load; here it is given 10 seconds instead of a minute."""
    return await strike_worker(stage, signal.SIGSTOP, stage.count(4))
