"""Who gets in when there is no room for all."""

from __future__ import annotations

import asyncio

import pytest

from bestofn.errors import OverloadedError
from service.admission import Admission


class Queue:
    """Requests for places, each held until it is let go, and the order in which they got in."""

    def __init__(self, *, running: int, waiting: int = 100) -> None:
        self.admission = Admission(running=running, waiting=waiting)
        self.entered: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, sequences: int, priority: int = 0) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._hold(name, sequences, priority))
        await asyncio.sleep(0)

    async def leave(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await asyncio.sleep(0)

    async def _hold(self, name: str, sequences: int, priority: int) -> None:
        async with self.admission.enter(sequences, priority):
            self.entered.append(name)
            await self._ends[name].wait()


async def test_lower_numbers_go_first_and_equals_in_order_of_arrival() -> None:
    queue = Queue(running=1)
    await queue.come("first", 1)
    for name, priority in (("a0", 0), ("b1", 1), ("c-1", -1), ("d0", 0), ("e-1", -1)):
        await queue.come(name, 1, priority)
    for name in ("first", "c-1", "e-1", "a0", "d0"):
        await queue.leave(name)
    assert queue.entered == ["first", "c-1", "e-1", "a0", "d0", "b1"]
    await queue.leave("b1")
    assert (queue.admission.running, queue.admission.waiting) == (0, 0)


async def test_one_that_is_too_large_yet_is_overtaken_only_by_lower_numbers() -> None:
    queue = Queue(running=4)
    await queue.come("first", 3)
    await queue.come("large", 4)
    await queue.come("small", 1)
    assert queue.entered == ["first"]
    await queue.come("urgent", 1, -1)
    assert queue.entered == ["first", "urgent"]
    await queue.leave("first")
    assert queue.entered == ["first", "urgent"]
    await queue.leave("urgent")
    assert queue.entered == ["first", "urgent", "large"]


async def test_the_one_behind_moves_up_when_the_next_gives_up() -> None:
    queue = Queue(running=2)
    await queue.come("first", 1)
    await queue.come("large", 2, -1)
    await queue.come("small", 1)
    await queue.cancel("large")
    assert queue.entered == ["first", "small"]
    assert (queue.admission.running, queue.admission.waiting) == (2, 0)


async def test_a_full_queue_sheds_the_newcomer_whatever_its_priority() -> None:
    queue = Queue(running=1, waiting=2)
    await queue.come("first", 1)
    await queue.come("waits", 1, 9)
    await queue.come("waits too", 1, 9)
    with pytest.raises(OverloadedError, match="limit of 2 waiting"):
        async with queue.admission.enter(1, -9):
            pass
    assert queue.admission.waiting == 2
