"""Ten times what the service takes at once, in every mode, all at the same moment."""

from __future__ import annotations

import asyncio

from tests.faults.stage import Stage
from tests.faults.tally import Tally

PROMISE = (
    "Under ten times the load it takes, every request gets one result or one clear error, "
    "and nothing is left over."
)


async def inject(stage: Stage) -> Tally:
    """Offer batches of ten times what may run and wait; half of the requests must be shed."""
    service = await stage.service()
    await service.ask()
    before = await service.held()
    tally = Tally()
    left = stage.count(10_000, least=600)
    while left > 0:
        # 512 sequences run and 2048 wait by default: 600 requests of 4 to 64 are some ten times that.
        burst = min(left, 600)
        asks = [
            service.ask(("bon", "ref", "vbon")[i % 3], n=(4, 64, 64)[i % 3]) for i in range(burst)
        ]
        for response in await asyncio.gather(*asks):
            tally.add(response)
        left -= burst
    tally.left_over = await service.left_over(before)
    return tally
