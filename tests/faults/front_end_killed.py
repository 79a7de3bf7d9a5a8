"""``kill -9`` of the service's own process: nothing it started may live on and hold memory or a GPU."""

from __future__ import annotations

import asyncio

from tests.faults.service import serving
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.faults.told_to_stop import _living

PROMISE = "When the front end is killed, its engines and reward workers end too."


async def inject(stage: Stage) -> Tally:
    """Kill it under load. Its clients get no answer: there is nobody left to give one."""
    tally = Tally()
    async with serving(stage.sandbox, stage.scratch) as service:
        await service.ask()
        children = service.children()
        asks = [asyncio.create_task(service.ask("bon", max_tokens=64)) for _ in range(32)]
        await asyncio.sleep(0.2)
        service.process.kill()
        await asyncio.gather(*asks)
        tally.asked = tally.answered = len(children)
        tally.left_over = {"processes": await _living(service, children)}
    return tally
