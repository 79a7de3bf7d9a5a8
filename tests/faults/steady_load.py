"""A steady load in modes that share an engine and in one that does not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tests.faults.service import Service
from tests.faults.tally import Tally

MODES = ("bon", "vbon")


@asynccontextmanager
async def steady_load(service: Service, tally: Tally, width: int = 8) -> AsyncGenerator[None, None]:
    """Keep so many requests under way and count how each ends."""
    stop = asyncio.Event()

    async def keep_asking(mode: str) -> None:
        while not stop.is_set():
            tally.add(await service.ask(mode, max_tokens=random.choice((4, 24))))
            await asyncio.sleep(0.05)

    load = [asyncio.create_task(keep_asking(MODES[i % len(MODES)])) for i in range(width)]
    try:
        await asyncio.sleep(0.3)
        yield
    finally:
        stop.set()
        await asyncio.gather(*load)


async def must_answer(service: Service, mode: str, tally: Tally, when: str) -> None:
    """Ask once; anything but an answer breaks the promise."""
    response = await service.ask(mode)
    tally.add(response)
    if not isinstance(response, Exception) and response.status_code != 200:
        tally.fail(f"{mode} does not answer {when}: {response.text[:200]}")
