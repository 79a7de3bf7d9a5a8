"""Bounded admission: requests wait their turn, counted by the sequences they ask for."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from bestofn.errors import OverloadedError


@dataclass(order=True, slots=True)
class _Place:
    """A request that waits; the smallest is next."""

    priority: int
    number: int
    cost: int = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


class Admission:
    """Lowest priority first, then first come, first served; ``running`` inside, ``waiting`` outside.

    Both count sequences. A request larger than the whole capacity is admitted alone. One that is next
    and too large for what is free is overtaken only by a lower priority, or large requests would wait
    for ever. Nobody who waits or runs is sent away for one that comes later.
    """

    def __init__(self, *, running: int, waiting: int) -> None:
        self._capacity, self._max_waiting = running, waiting
        self.running = 0
        self.waiting = 0
        self._queue: list[_Place] = []
        self._numbers = count()

    @asynccontextmanager
    async def enter(self, sequences: int, priority: int = 0) -> AsyncGenerator[None, None]:
        """Hold a place for ``sequences`` candidates; the lower ``priority``, the earlier.

        Raises:
            OverloadedError: at once, if too many wait already.
        """
        cost = min(sequences, self._capacity)
        await self._acquire(cost, priority)
        try:
            yield
        finally:
            self.running -= cost
            self._admit()

    async def _acquire(self, cost: int, priority: int) -> None:
        is_next = not self._queue or priority < self._queue[0].priority
        if is_next and self.running + cost <= self._capacity:
            self.running += cost
            return
        if self.waiting + cost > self._max_waiting:
            raise OverloadedError(
                f"{self.running} sequences run and {self.waiting} wait; {cost} more would pass the "
                f"limit of {self._max_waiting} waiting",
                retry_after_s=1.0,
            )
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = _Place(priority, next(self._numbers), cost, admitted)
        insort(self._queue, place)
        self.waiting += cost
        try:
            await admitted
        except asyncio.CancelledError:
            if not admitted.cancelled():
                self.running -= cost  # admitted and cancelled in the same moment
            elif place in self._queue:
                self._queue.remove(place)
                self.waiting -= cost
            self._admit()
            raise

    def _admit(self) -> None:
        while self._queue and self.running + self._queue[0].cost <= self._capacity:
            place = self._queue.pop(0)
            self.waiting -= place.cost
            if not place.admitted.cancelled():
                self.running += place.cost
                place.admitted.set_result(None)
