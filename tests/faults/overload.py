"""Ten times what the service takes at once, in every mode, all at the same moment."""

from __future__ import annotations

import asyncio

import httpx

from tests.faults.service import Service
from tests.faults.stage import Stage
from tests.faults.tally import Tally

PROMISE = (
    "Under ten times the load it takes, every request gets one result or one clear error, "
    "and nothing is left over."
)


# 512 sequences run and 2048 wait by default: these are ten times that.
BURST, SEQUENCES = 600, 64


async def inject(stage: Stage) -> Tally:
    """Offer batches of ten times what may run and wait; what does not fit must be shed, in every mode."""
    service = await stage.service()
    await service.ask()
    before = await service.held()
    tally = Tally()
    left = stage.count(10_000, least=BURST)
    while left > 0:
        asks = [_ask(service, number) for number in range(min(left, BURST))]
        for response in await asyncio.gather(*asks):
            tally.add(response)
        left -= len(asks)
    tally.left_over = await service.left_over(before)
    if not tally.errors["overloaded"]:
        tally.fail("nothing was shed, so the service was not overloaded")
    return tally


async def _ask(service: Service, number: int) -> httpx.Response | Exception:
    """Two of three are best-of-N; the other modes draw one sample each."""
    if number % 3:
        return await service.ask("bon", n=SEQUENCES)
    return await service.ask(("ref", "vbon")[number % 2])
