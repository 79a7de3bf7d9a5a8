"""What the admitted wait when ten times as much is asked as can be done, on a service set for latency."""

from __future__ import annotations

import asyncio
import random
from time import perf_counter

import httpx
import numpy as np

from tests.faults.service import BODY, Service, serving
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.faults.tools.wire import post, wire

PROMISE = (
    "Where running_sequences is what the engine decodes without slowing and waiting_sequences half of it, "
    "the p99 of the admitted stays within twice the unloaded one at ten times the load."
)
RUNNING = 4  # more slow a CPU's engine down: at 16 it answers twice as many, each twice as late
IN_FULL_ONLY = True  # a measurement; `overload` counts what becomes of requests
FLAGS = (
    "--limits.running-sequences",
    str(RUNNING),
    "--limits.waiting-sequences",
    str(RUNNING // 2),
)
OVERLOAD = 10
CHANGES = {"n": 1, "max_tokens": 24, "ignore_eos": True}


async def inject(stage: Stage) -> Tally:
    """Measure alone, then how much it serves, then offer ten times that; the figures are notes."""
    tally = Tally()
    async with serving(stage.sandbox, stage.scratch, *FLAGS) as service:
        await service.ask()
        before = await service.held()
        count = stage.count(1000, least=40)
        alone = [await _timed(service, tally) for _ in range(count)]
        served_per_s = await _served_per_s(service, count, tally)
        loaded = await _offer(
            service, OVERLOAD * served_per_s, stage.count(20_000, least=400), tally
        )
        tally.left_over = await service.left_over(before)
    unloaded_s, overloaded_s = (
        float(np.percentile([seconds for seconds in found if seconds is not None], 99))
        for found in (alone, loaded)
    )
    shed = sum(seconds is None for seconds in loaded)
    tally.notes.append(
        f"p99 alone {unloaded_s * 1e3:.0f} ms; at {OVERLOAD} times {served_per_s:.0f} requests/s "
        f"{overloaded_s * 1e3:.0f} ms, ratio {overloaded_s / unloaded_s:.2f}; {shed} of {len(loaded)} shed"
    )
    if not shed:
        tally.fail("nothing was shed: this was no overload")
    return tally


async def _timed(service: Service, tally: Tally) -> float | None:
    """Seconds until the answer; nothing if there was none."""
    begun = perf_counter()
    response = await _asked(service)
    took = perf_counter() - begun
    tally.add(response)
    answered = isinstance(response, httpx.Response) and response.status_code == 200
    return took if answered else None


async def _asked(service: Service) -> httpx.Response | Exception:
    """By a plain connection: with hundreds in flight httpx's pool takes longer than the server."""
    try:
        async with wire(service.url) as connection:
            connection.send(post("/generate?mode=bon", BODY | CHANGES))
            return await connection.response(150)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return error


async def _served_per_s(service: Service, count: int, tally: Tally) -> float:
    """With as many in flight as may run."""
    numbers = iter(range(count))

    async def ask_on() -> None:
        for _ in numbers:
            await _timed(service, tally)

    begun = perf_counter()
    await asyncio.gather(*(ask_on() for _ in range(RUNNING)))
    return count / (perf_counter() - begun)


async def _offer(service: Service, per_s: float, count: int, tally: Tally) -> list[float | None]:
    """Poisson arrivals that wait for nobody."""
    chance = random.Random(0)
    asked = []
    due = perf_counter()
    for _ in range(count):
        due += chance.expovariate(per_s)
        await asyncio.sleep(max(0.0, due - perf_counter()))
        asked.append(asyncio.create_task(_timed(service, tally)))
    return await asyncio.gather(*asked)
