"""``kill -9`` of the service's own process: nothing it started may live on and hold memory or a GPU.

Nor may it if the guardians of its engines were killed first: they are replaced.
"""

from __future__ import annotations

import asyncio

import psutil

from tests.faults.service import Service, lives
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.faults.told_to_stop import _living

PROMISE = "When the front end is killed, its engines and reward workers end too."
ENDS_THE_SERVICE = True
ENGINES = 2


async def inject(stage: Stage) -> Tally:
    """Kill it under load. Its clients get no answer: there is nobody left to give one."""
    tally = Tally()
    service = await stage.service()
    await service.ask()
    for guardian in _guardians(service):
        guardian.kill()
    await _until_guarded(service)
    children = service.children()
    asks = [asyncio.create_task(service.ask("bon", max_tokens=64)) for _ in range(32)]
    await asyncio.sleep(0.2)
    service.process.kill()
    await asyncio.gather(*asks)
    tally.asked = tally.answered = len(children)
    tally.left_over = {"processes": await _living(service, children)}
    return tally


async def _until_guarded(service: Service, limit_s: float = 60.0) -> None:
    async with asyncio.timeout(limit_s):
        while len(_guardians(service)) < ENGINES:  # noqa: ASYNC110 -- another process's doing
            await asyncio.sleep(0.1)


def _guardians(service: Service) -> list[psutil.Process]:
    return [one for one in service.children('b"done"') if lives(one)]
