"""A service whose log cannot be written, as on a full disk, starts, and its dead parts come back."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.faults.service import ENGINE_FLAGS, Service
from tests.faults.stage import Stage
from tests.faults.steady_load import must_answer
from tests.faults.tally import Tally

PROMISE = "A log that cannot be written stops neither a start nor a restart."


async def inject(stage: Stage) -> Tally:
    """Start with /dev/full as standard output and error; kill the engine and the reward worker."""
    tally = Tally()
    flags = (
        *(*ENGINE_FLAGS, "--policies", f"ref={stage.sandbox / 'policy'}"),
        *("--reward", str(stage.sandbox / "reward")),
    )
    async with stage.serving(*flags, models=False, log=Path("/dev/full")) as service:
        await must_answer(service, "bon", tally, "after the start")
        for part in ("EngineCore", "multiprocessing.spawn"):
            await _kill(service, part, tally)
            await must_answer(service, "bon", tally, f"after the restart of {part}")
    return tally


async def _kill(service: Service, part: str, tally: Tally) -> None:
    victims = service.children(part)
    if not victims:
        tally.fail(f"no process {part}")
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    if not await service.until_not_ready():
        tally.fail(f"readiness did not drop after the end of {part}")
    tally.recovered_s = await service.until_ready(200)
