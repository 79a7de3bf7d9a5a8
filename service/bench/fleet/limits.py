"""The limits of a simulated fleet: one admission in each front end, or one for all behind a round trip."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal, Protocol

from service.admission.admission import Admission

# One host admits for all front ends; each front end has its part of the limits; each has all of them.
Sharing = Literal["shared", "split", "each"]


class Limits(Protocol):
    """Admits the requests of one front end."""

    @property
    def running(self) -> int:
        """Sequences admitted, as far as the front end knows."""

    def enter(self, sequences: int, max_tokens: int) -> AbstractAsyncContextManager[None]:
        """Wait for places and hold them for the length of the block; the answer is complete before its end.

        Raises:
            OverloadedError: the queue is full.
        """


class OwnLimits:
    """The admission of one front end, in its own process."""

    def __init__(self, *, running: int, waiting: int, running_tokens: int) -> None:
        self._admission = Admission(running=running, waiting=waiting, running_tokens=running_tokens)

    @property
    def running(self) -> int:
        """Sequences admitted, of this front end."""
        return self._admission.running

    @asynccontextmanager
    async def enter(self, sequences: int, max_tokens: int) -> AsyncGenerator[None, None]:
        """Wait for places and hold them for the length of the block; takes no time by itself."""
        async with self._admission.enter(sequences, max_tokens=max_tokens) as entry:
            yield
            entry.spent(sequences * max_tokens)


class SharedLimits:
    """One admission for all front ends, in a process that handles one message at a time.

    A request waits for a message there and back, and for the messages before its own; the end of a request is
    told by a message that nobody waits for. Front ends are told of changes, at most every ``notice_s``.

    Attributes:
        busy_s: the time in which the host worked.
    """

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        running_tokens: int,
        front_ends: int,
        round_trip_s: float,
        message_s: float,
        notice_s: float,
    ) -> None:
        self.busy_s = 0.0
        self._admission = Admission(running=running, waiting=waiting, running_tokens=running_tokens)
        self._front_ends, self._notice_s = front_ends, notice_s
        self._way_s, self._message_s = round_trip_s / 2, message_s
        self._free_at_s = 0.0
        self._told_at_s = -notice_s

    @property
    def running(self) -> int:
        """Sequences admitted, of all front ends."""
        return self._admission.running

    @asynccontextmanager
    async def enter(self, sequences: int, max_tokens: int) -> AsyncGenerator[None, None]:
        """Ask for places, hold them for the length of the block, and tell that they are free."""
        await self._sent()
        async with self._admission.enter(sequences, max_tokens=max_tokens) as entry:
            self._tell()
            await asyncio.sleep(self._way_s)
            yield
            await self._sent()
            entry.spent(sequences * max_tokens)
        self._tell()

    async def _sent(self) -> None:
        """Wait until the host has received a message and handled it."""
        await asyncio.sleep(self._way_s)
        now_s = asyncio.get_running_loop().time()
        self._work(now_s, self._message_s)
        await asyncio.sleep(self._free_at_s - now_s)

    def _tell(self) -> None:
        """Tell all front ends of a change, unless they were told just now or the host is behind."""
        now_s = asyncio.get_running_loop().time()
        behind = self._free_at_s > now_s + self._notice_s
        if now_s >= self._told_at_s + self._notice_s and not behind:
            self._told_at_s = now_s
            self._work(now_s, self._front_ends * self._message_s)

    def _work(self, now_s: float, work_s: float) -> None:
        self._free_at_s = max(self._free_at_s, now_s) + work_s
        self.busy_s += work_s
