"""``kill -9`` of the reward model's process under load."""

from __future__ import annotations

import asyncio

from tests.faults.engine_killed import _keep_asking, _slack
from tests.faults.stage import Stage
from tests.faults.tally import Tally

PROMISE = (
    "A reward worker that is killed fails only what it was scoring; modes of one sample go on without "
    "rewards, and it is back by itself."
)


async def inject(stage: Stage) -> Tally:
    """Kill it again and again."""
    service = await stage.service()
    await service.ask()
    before = await service.held()
    tally = Tally()
    for _ in range(stage.count(10, least=2)):
        stop = asyncio.Event()
        load = [
            asyncio.create_task(_keep_asking(service, mode, stop, tally))
            for mode in ("bon", "vbon") * 4
        ]
        await asyncio.sleep(0.3)
        service.children("spawn_main")[0].kill()
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(1.0)
        single = await service.ask("vbon")
        tally.add(single)
        if not isinstance(single, Exception) and single.status_code != 200:
            tally.lost.append(f"vbon needs no reward, but is {single.status_code}")
            tally.asked += 1
        await service.until_ready(120)
        tally.recovered_s = max(tally.recovered_s or 0, asyncio.get_running_loop().time() - begun)
        stop.set()
        await asyncio.gather(*load)
    after = await service.left_over(before)
    tally.left_over = {kind: more for kind, more in after.items() if more > _slack(kind)}
    return tally
