"""Requests under way: limits, draining, and waiting for what they use."""

from __future__ import annotations

import asyncio

import pytest

from service.runtime.in_flight import InFlightRequests
from vbon.errors import RequestTimeoutError, ShuttingDownError


async def fly(
    in_flight: InFlightRequests, seconds: float, *uses: object, limit_s: float = 30.0
) -> str:
    async with in_flight.track(limit_s, "limits.timeout_s", uses):
        await asyncio.sleep(seconds)
    return "landed"


async def test_one_that_takes_too_long_is_told_which_limit_it_passed() -> None:
    with pytest.raises(RequestTimeoutError, match=r"0\.01 s \(limits\.timeout_s\)"):
        await fly(InFlightRequests(), 5.0, limit_s=0.01)


async def test_draining_waits_for_those_under_way_and_takes_no_more() -> None:
    in_flight = InFlightRequests()
    flying = asyncio.create_task(fly(in_flight, 0.05))
    await asyncio.sleep(0)
    draining = asyncio.create_task(in_flight.drain(30))
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDownError):
        await fly(in_flight, 0)
    assert await draining == 0
    assert await flying == "landed"
    assert len(in_flight) == 0


async def test_at_the_limit_those_left_are_ended_with_a_clear_error() -> None:
    in_flight = InFlightRequests()
    flying = [asyncio.create_task(fly(in_flight, 60.0)) for _ in range(3)]
    await asyncio.sleep(0)
    assert await in_flight.drain(0.02) == 3
    ends = await asyncio.gather(*flying, return_exceptions=True)
    assert all(isinstance(end, ShuttingDownError) for end in ends)
    assert len(in_flight) == 0


async def test_a_part_is_waited_for_until_nobody_uses_it() -> None:
    in_flight, old, new = InFlightRequests(), object(), object()
    using = asyncio.create_task(fly(in_flight, 0.05, old))
    other = asyncio.create_task(fly(in_flight, 60.0, new))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(in_flight.until_unused(old))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await using
    await asyncio.wait_for(waiting, 10)
    assert not other.done()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_a_client_that_leaves_is_no_timeout() -> None:
    in_flight = InFlightRequests()
    flying = asyncio.create_task(fly(in_flight, 60.0))
    await asyncio.sleep(0)
    flying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flying
    assert len(in_flight) == 0
