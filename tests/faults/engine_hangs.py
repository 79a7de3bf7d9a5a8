"""An engine's process stops (SIGSTOP) and says nothing more, as one stuck in a kernel does."""

from __future__ import annotations

import signal

from tests.faults.engine_killed import strike_engines
from tests.faults.stage import Stage
from tests.faults.tally import Tally

PROMISE = "An engine that hangs is found, ended and started again; what it held gets an error, others go on."


async def inject(stage: Stage) -> Tally:
    """Stop an engine under load; here it is given 10 seconds instead of a minute."""
    return await strike_engines(stage, signal.SIGSTOP, stage.count(4))
