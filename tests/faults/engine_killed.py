"""``kill -9`` of an engine's process while it decodes, under load in every mode."""

from __future__ import annotations

import asyncio
import signal

import psutil

from tests.faults.service import Service
from tests.faults.stage import Stage
from tests.faults.steady_load import must_answer, steady_load
from tests.faults.tally import Tally

PROMISE = (
    "An engine that is killed fails only what it was decoding; other modes go on, "
    "and it is back by itself."
)
ENGINES = "EngineCore"


async def inject(stage: Stage) -> Tally:
    """Kill each engine in turn under a steady load; ask the other's mode all the while."""
    return await strike_engines(stage, signal.SIGKILL, stage.count(10))


async def strike_engines(stage: Stage, blow: signal.Signals, times: int) -> Tally:
    """Send engines a signal in turn, and see what becomes of the work and of the service."""
    service = await stage.service()
    await must_answer(service, "bon", tally := Tally(), "before the fault")
    before = await service.held()
    for turn in range(times):
        async with steady_load(service, tally):
            await _one(service, service.children(ENGINES)[turn % 2], blow, tally)
        for mode in ("bon", "vbon"):
            await must_answer(service, mode, tally, "once its engine is back")
    tally.left_over = await service.left_over(before)
    return tally


async def _one(
    service: Service, victim: psutil.Process, blow: signal.Signals, tally: Tally
) -> None:
    answered, now = tally.answered, asyncio.get_running_loop().time
    begun_s = now()
    victim.send_signal(blow)
    if not await service.until_not_ready():
        tally.fail("readiness did not drop")
        return
    await service.until_ready(200)
    if tally.answered == answered:
        tally.fail("nobody was answered while an engine was away")
    tally.recovered_s = max(tally.recovered_s or 0, now() - begun_s)
