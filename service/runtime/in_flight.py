"""The requests under way: waited for before what they use goes, and ended where they may take no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from vbon.errors import RequestTimeoutError, ShuttingDownError


class InFlightRequests:
    """Gives every request its time limit, and knows which engine and scorer it uses.

    Attributes:
        closing: whether no more are taken.
    """

    def __init__(self) -> None:
        self.closing = False
        self._cut = False
        self._landed = asyncio.Event()
        self._under_way: dict[asyncio.Timeout, tuple[object, ...]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    @asynccontextmanager
    async def track(
        self, limit_s: float | None, named: str, uses: tuple[object, ...]
    ) -> AsyncGenerator[None, None]:
        """Within this, a request that uses some parts.

        Args:
            limit_s: ``None`` for what is bounded by something else.

        Raises:
            ShuttingDownError: none are taken any more, or this one was ended for that.
            RequestTimeoutError: it took longer than ``limit_s``, which ``named`` has set.
        """
        if self.closing:
            raise ShuttingDownError("the service is shutting down; ask again, or elsewhere")
        timeout = asyncio.timeout(limit_s)
        self._under_way[timeout] = uses
        try:
            async with timeout:
                yield
        except TimeoutError as error:
            if self._cut:
                raise ShuttingDownError(
                    "the service is shutting down and this answer was not ready in time; ask again, "
                    "or elsewhere"
                ) from error
            raise RequestTimeoutError(f"no answer within {limit_s or 0:g} s ({named})") from error
        finally:
            del self._under_way[timeout]
            self._landed.set()

    async def until_unused(self, part: object) -> None:
        """Until no request that is under way uses it; each has a time limit, so this has one too."""
        while any(part is used for uses in self._under_way.values() for used in uses):
            await self._next_landing()

    async def drain(self, limit_s: float) -> int:
        """Take no more, let those under way finish, and end those that have not by the limit.

        Returns:
            How many were ended.
        """
        self.closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._under_way:
                    await self._next_landing()
        self._cut = True
        ended = [timeout for timeout in self._under_way if not timeout.expired()]
        for timeout in ended:
            timeout.reschedule(asyncio.get_running_loop().time())
        return len(ended)

    async def _next_landing(self) -> None:
        self._landed.clear()
        await self._landed.wait()
