"""``kill -9`` of the reward model's process under load."""

from __future__ import annotations

import asyncio
import signal

from tests.faults.stage import Stage
from tests.faults.steady_load import must_answer, steady_load
from tests.faults.tally import Tally

PROMISE = (
    "A reward worker that is killed fails only what it was scoring; modes of one sample go on without "
    "rewards, and it is back by itself."
)
WORKERS = "multiprocessing.spawn"


async def inject(stage: Stage) -> Tally:
    """Kill it again and again."""
    return await strike_worker(stage, signal.SIGKILL, stage.count(10))


async def strike_worker(stage: Stage, blow: signal.Signals, times: int) -> Tally:
    """Send the worker a signal, and see what becomes of the work and of the service."""
    service = await stage.service()
    await must_answer(service, "bon", tally := Tally(), "before the fault")
    before = await service.held()
    now = asyncio.get_running_loop().time
    for _ in range(times):
        async with steady_load(service, tally):
            begun_s = now()
            service.children(WORKERS)[0].send_signal(blow)
            if not await service.until_not_ready():
                tally.fail("readiness did not drop")
            await must_answer(service, "vbon", tally, "without a reward worker")
            await service.until_ready(120)
            tally.recovered_s = max(tally.recovered_s or 0, now() - begun_s)
        await must_answer(service, "bon", tally, "once the worker is back")
    tally.left_over = await service.left_over(before)
    return tally
