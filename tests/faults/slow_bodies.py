"""Slow-loris: hundreds of connections on which heads and bodies trickle, or nothing comes at all."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from time import perf_counter

import httpx

from tests.faults.service import Service
from tests.faults.stage import RECEIVE_TIMEOUT_S, Stage
from tests.faults.tally import Tally
from tests.faults.tools.wire import Wire, post, wire
from tests.fuzz.verdict import wrong_with

PROMISE = "Requests that trickle in are ended by limits.receive_timeout_s, the others are served."
KINDS = {
    "silence": b"",
    "head": b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 50,
    "body": post("/generate", b" " * 200),
    "chunks": b"POST /generate HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    + b"1\r\n \r\n" * 50,
}  # fmt: skip
LATE_S = 20.0  # a busy machine's


async def inject(stage: Stage) -> Tally:
    """All at once, while another client goes on asking."""
    service = await stage.service()
    await service.ask()
    before = await service.held()
    tally = Tally()
    chance = random.Random(0)
    kinds = [chance.choice(tuple(KINDS)) for _ in range(stage.count(2000, least=120))]
    slow = asyncio.gather(*(_trickle(service, kind, tally) for kind in kinds))
    served = 0
    while not slow.done():
        response = await service.ask("ref")
        tally.add(response)
        if not isinstance(response, httpx.Response) or response.status_code != 200:
            tally.lost.append(f"one that was not slow: {response}")
            tally.asked += 1
        served += 1
    await slow
    tally.notes.append(f"{dict(Counter(kinds))} slow connections; {served} others served meanwhile")
    tally.left_over = await service.left_over(before)
    return tally


async def _trickle(service: Service, kind: str, tally: Tally) -> None:
    tally.asked += 1
    begun = perf_counter()
    async with wire(service.url) as connection:
        sending = asyncio.create_task(_send_slowly(connection, kind))
        try:
            response = await connection.response(RECEIVE_TIMEOUT_S + LATE_S)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
            tally.lost.append(
                f"{kind}: {type(error).__name__} after {perf_counter() - begun:.0f} s"
            )
            return
        finally:
            sending.cancel()
    trouble = wrong_with(response)
    if trouble or response.status_code != 408:
        tally.lost.append(f"{kind}: {trouble or response.status_code}")
    else:
        tally.errors[response.json()["error"]["type"]] += 1


async def _send_slowly(connection: Wire, kind: str) -> None:
    """Half of the head or body at once, the rest a byte at a time: too slow to end in time."""
    data = KINDS[kind]
    at = len(data) - 4 * int(RECEIVE_TIMEOUT_S)
    connection.send(data[: max(0, at)])
    for byte in data[max(0, at) :]:
        await asyncio.sleep(0.5)
        connection.send(bytes([byte]))
