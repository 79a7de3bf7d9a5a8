"""Requests in flight: time limits, draining, and waiting until a model is unused."""

from __future__ import annotations

import asyncio

import pytest

from service.runtime.in_flight import InFlightRequests
from tests.unit.virtual_clock import virtually
from vbon.errors import RequestTimeoutError, ShuttingDownError

clocked = virtually("service")


async def request(
    in_flight: InFlightRequests, seconds: float, *uses: object, limit_s: float = 30.0
) -> str:
    async with in_flight.track(limit_s, "limits.timeout_s", uses):
        await asyncio.sleep(seconds)
    return "done"


async def test_a_request_that_takes_too_long_fails_with_the_name_of_the_limit() -> None:
    with pytest.raises(RequestTimeoutError, match=r"0\.01 s \(limits\.timeout_s\)"):
        await request(InFlightRequests(), 5.0, limit_s=0.01)


async def test_draining_waits_for_requests_in_flight_and_rejects_new_ones() -> None:
    in_flight = InFlightRequests()
    running = asyncio.create_task(request(in_flight, 0.05))
    await asyncio.sleep(0)
    draining = asyncio.create_task(in_flight.drain(30))
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDownError):
        await request(in_flight, 0)
    assert await draining == 0
    assert await running == "done"
    assert len(in_flight) == 0


async def test_at_the_limit_the_remaining_requests_end_with_a_clear_error() -> None:
    in_flight = InFlightRequests()
    running = [asyncio.create_task(request(in_flight, 60.0)) for _ in range(3)]
    await asyncio.sleep(0)
    assert await in_flight.drain(0.02) == 3
    ends = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(end, ShuttingDownError) for end in ends)
    assert len(in_flight) == 0


@clocked
async def test_waiting_ends_when_no_request_uses_the_part() -> None:
    in_flight, old, new = InFlightRequests(), object(), object()
    using = asyncio.create_task(request(in_flight, 0.05, old))
    other = asyncio.create_task(request(in_flight, 60.0, new))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(in_flight.until_unused(old))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await using
    await asyncio.wait_for(waiting, 60)
    assert not other.done()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_a_client_that_leaves_is_not_a_timeout() -> None:
    in_flight = InFlightRequests()
    running = asyncio.create_task(request(in_flight, 60.0))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(in_flight) == 0
