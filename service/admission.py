"""Bounded admission: requests wait their turn by the number of sequences they ask for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from bestofn.errors import OverloadedError


class Admission:
    """First come, first served, at most ``running`` sequences inside and ``waiting`` outside.

    A request larger than the whole capacity is admitted alone.
    """

    def __init__(self, *, running: int, waiting: int) -> None:
        self._capacity, self._max_waiting = running, waiting
        self.running = 0
        self.waiting = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def enter(self, sequences: int) -> AsyncGenerator[None, None]:
        """Hold a place for ``sequences`` candidates.

        Raises:
            OverloadedError: at once, if too many wait already.
        """
        cost = min(sequences, self._capacity)
        await self._acquire(cost)
        try:
            yield
        finally:
            self.running -= cost
            self._admit()

    async def _acquire(self, cost: int) -> None:
        if not self._queue and self.running + cost <= self._capacity:
            self.running += cost
            return
        if self.waiting + cost > self._max_waiting:
            raise OverloadedError(
                f"{self.running} sequences run and {self.waiting} wait; {cost} more would pass the "
                f"limit of {self._max_waiting} waiting",
                retry_after_s=1.0,
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((cost, place))
        self.waiting += cost
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.running -= cost  # admitted and cancelled in the same moment
            elif (cost, place) in self._queue:
                self._queue.remove((cost, place))
                self.waiting -= cost
            self._admit()
            raise

    def _admit(self) -> None:
        while self._queue and self.running + self._queue[0][0] <= self._capacity:
            cost, place = self._queue.popleft()
            self.waiting -= cost
            if not place.cancelled():
                self.running += cost
                place.set_result(None)
