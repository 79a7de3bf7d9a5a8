"""``kill -9`` of an engine's process while it decodes, under load in every mode."""

from __future__ import annotations

import asyncio
import random

from tests.faults.service import Service
from tests.faults.stage import Stage
from tests.faults.tally import Tally

PROMISE = (
    "An engine that is killed fails only what it was decoding; other modes go on, "
    "and it is back by itself."
)
ENGINES = "EngineCore"


async def inject(stage: Stage) -> Tally:
    """Kill each engine in turn under a steady load; ask the other's mode all the while."""
    service = await stage.service()
    await service.ask()
    before = await service.held()
    tally = Tally()
    for round_ in range(stage.count(10, least=2)):
        await _one_death(service, round_, tally)
    # The new process has other connections than the old, so descriptors are compared with some slack.
    after = await service.left_over(before)
    tally.left_over = {kind: more for kind, more in after.items() if more > _slack(kind)}
    return tally


async def _one_death(service: Service, round_: int, tally: Tally) -> None:
    engines = service.children(ENGINES)
    if len(engines) != 2:
        raise RuntimeError(f"two engines expected, found {engines}")
    stop = asyncio.Event()
    load = [
        asyncio.create_task(_keep_asking(service, mode, stop, tally))
        for mode in ("bon", "vbon") * 4
    ]
    await asyncio.sleep(0.5)
    victim = engines[round_ % 2]
    victim.kill()
    dropped = False
    answered = tally.answered
    begun = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - begun < 5 and not dropped:
        dropped = not await service.ready()
        await asyncio.sleep(0.02)
    await service.until_ready(120)
    if not dropped:
        tally.lost.append("readiness did not drop")
        tally.asked += 1
    if tally.answered == answered:
        tally.lost.append("nobody was answered while an engine was away")
        tally.asked += 1
    tally.recovered_s = max(tally.recovered_s or 0, asyncio.get_running_loop().time() - begun)
    stop.set()
    await asyncio.gather(*load)
    for mode in ("bon", "vbon"):
        response = await service.ask(mode)
        tally.add(response)
        if not isinstance(response, Exception) and response.status_code != 200:
            tally.lost.append(f"{mode} does not answer once it is back")
            tally.asked += 1


async def _keep_asking(service: Service, mode: str, stop: asyncio.Event, tally: Tally) -> None:
    while not stop.is_set():
        tally.add(await service.ask(mode, max_tokens=random.choice((4, 24))))
        await asyncio.sleep(0.05)


def _slack(kind: str) -> float:
    return {"file descriptors": 8, "threads": 8}.get(kind, 0)
