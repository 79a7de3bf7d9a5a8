"""Latency of admitted requests at ten times the load, on a service set for latency."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from time import perf_counter

import httpx
import numpy as np

from tests.faults.service import BODY, Service, serving
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.faults.tools.wire import post, wire

PROMISE = (
    "Where running_sequences is what the engine decodes without slowing and waiting_sequences a quarter, "
    "the p99 of the admitted stays within twice the unloaded one at ten times the load."
)
IN_FULL_ONLY = True  # a measurement; `overload` counts what becomes of requests
WIDTHS = (2, 4, 8, 16)
# An answer's time at full width over its time alone. With a quarter as many waiting it takes 1.25 times as
# long again, and 1.25 times once more where clients and refusals take time of the engine's cores.
SLOWER = 1.28
OVERLOAD = 10
CHANGES = {"n": 1, "max_tokens": 24, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Took:
    """One answer: seconds until it was here, and those the service knows of."""

    here_s: float
    there_s: float


async def inject(stage: Stage) -> Tally:
    """Set it as the documentation says, measure alone and at full width, then offer ten times that."""
    tally = Tally()
    count = stage.count(1000, least=40)
    async with serving(stage.sandbox, stage.scratch) as service:
        running = await _width(service, count // 2, tally)
    waiting = running // 4
    flags = ("--limits.running-sequences", str(running))
    flags += ("--limits.waiting-sequences", str(waiting))
    async with serving(stage.sandbox, stage.scratch, *flags) as service:
        await service.ask()
        before = await service.held()
        alone = await _at_once(service, 1, count, tally)
        begun = perf_counter()
        served = await _at_once(service, running, count, tally)
        per_s = len(served) / (perf_counter() - begun)
        asked = stage.count(20_000, least=400)
        loaded = await _offer(service, OVERLOAD * per_s, asked, tally)
        tally.left_over = await service.left_over(before)
    tally.notes.append(
        f"{running} run and {waiting} wait; p99 alone {_p99(alone):.0f} ms; at {OVERLOAD} times "
        f"{per_s:.0f} requests/s {_p99(loaded):.0f} ms, ratio {_p99(loaded) / _p99(alone):.2f}; by the "
        f"service's clock {_p99(alone, there=True):.0f} and {_p99(loaded, there=True):.0f} ms; "
        f"{asked - len(loaded)} of {asked} shed"
    )
    if len(loaded) == asked:
        tally.fail("nothing was shed, so the service was not overloaded")
    return tally


async def _width(service: Service, count: int, tally: Tally) -> int:
    """The number of requests that the engine decodes at once without getting much slower."""
    await _at_once(service, max(WIDTHS), count, tally)  # to be warm
    alone_s = _median_s(await _at_once(service, 1, count, tally))
    found = 1
    for width in WIDTHS:
        slower = _median_s(await _at_once(service, width, count, tally)) / alone_s
        tally.notes.append(f"{width} at once: {slower:.2f} times as long as alone")
        if slower > SLOWER:
            break
        found = width
    return found


def _median_s(took: list[Took]) -> float:
    return float(np.median([one.here_s for one in took]))


def _p99(took: list[Took], *, there: bool = False) -> float:
    """The 99th percentile in milliseconds."""
    return 1e3 * float(np.percentile([one.there_s if there else one.here_s for one in took], 99))


async def _timed(service: Service, tally: Tally) -> Took | None:
    """The time that an answer took, or None if there was none."""
    begun = perf_counter()
    response = await _asked(service)
    here_s = perf_counter() - begun
    tally.add(response)
    if not isinstance(response, httpx.Response) or response.status_code != 200:
        return None
    return Took(here_s, response.json()["timings_ms"]["total"] / 1e3)


async def _asked(service: Service) -> httpx.Response | Exception:
    """The response over a plain connection: with hundreds in flight httpx is slower than the server."""
    try:
        async with wire(service.url) as connection:
            connection.send(post("/generate?mode=bon", BODY | CHANGES))
            return await connection.response(150)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return error


async def _at_once(service: Service, width: int, count: int, tally: Tally) -> list[Took]:
    """Send ``count`` requests with ``width`` in flight; the times of those answered."""
    numbers, found = iter(range(count)), []

    async def ask_on() -> None:
        for _ in numbers:
            found.append(await _timed(service, tally))

    await asyncio.gather(*(ask_on() for _ in range(width)))
    return [took for took in found if took is not None]


async def _offer(service: Service, per_s: float, count: int, tally: Tally) -> list[Took]:
    """Poisson arrivals that wait for nobody."""
    chance = random.Random(0)
    asked = []
    due = perf_counter()
    for _ in range(count):
        due += chance.expovariate(per_s)
        await asyncio.sleep(max(0.0, due - perf_counter()))
        asked.append(asyncio.create_task(_timed(service, tally)))
    return [took for took in await asyncio.gather(*asked) if took is not None]
