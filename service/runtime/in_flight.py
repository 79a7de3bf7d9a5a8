"""The requests in flight: their time limits, and the engines and scorers they use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from vbon.errors import RequestTimeoutError, ShuttingDownError


class InFlightRequests:
    """Enforces every request's time limit, and tracks which engines and scorers are in use.

    Shutdown waits for these requests, and a reload waits for those that use the replaced model.

    Attributes:
        closing: True once shutdown has begun; new requests are then rejected.
    """

    def __init__(self) -> None:
        self.closing = False
        self._cut_off = False
        self._finished = asyncio.Event()
        self._uses: dict[asyncio.Timeout, tuple[object, ...]] = {}

    def __len__(self) -> int:
        return len(self._uses)

    @asynccontextmanager
    async def track(
        self,
        limit_s: float | None,
        limit_name: str,
        uses: tuple[object, ...],
        spent_s: float = 0.0,
    ) -> AsyncGenerator[None, None]:
        """Run the block as a request in flight that uses these engines and scorers.

        Args:
            limit_s: the time limit; ``None`` if something else limits the block.
            limit_name: the setting that sets the limit, for the error message.
            spent_s: the part of the limit that an earlier block of the same request has taken.

        Raises:
            ShuttingDownError: shutdown has begun, or ended this request.
            RequestTimeoutError: the request took longer than ``limit_s``.
        """
        if self.closing:
            raise ShuttingDownError(
                "the service is shutting down; retry later or on another server"
            )
        timeout = asyncio.timeout(None if limit_s is None else max(0.0, limit_s - spent_s))
        self._uses[timeout] = uses
        try:
            async with timeout:
                yield
        except TimeoutError as error:
            if self._cut_off:
                raise ShuttingDownError(
                    "the service is shutting down and this answer was not ready in time; retry later or "
                    "on another server"
                ) from error
            raise RequestTimeoutError(
                f"no answer within {limit_s or 0:g} s ({limit_name})"
            ) from error
        finally:
            del self._uses[timeout]
            self._finished.set()

    async def until_unused(self, part: object) -> None:
        """Wait until no request in flight uses an engine or scorer. The requests' limits bound the wait."""
        while any(part is used for uses in self._uses.values() for used in uses):
            await self._next_finished()

    async def drain(self, limit_s: float) -> int:
        """Reject new requests, wait for those in flight, and end those that exceed the limit.

        Returns:
            The number of requests that were ended.
        """
        self.closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._uses:
                    await self._next_finished()
        self._cut_off = True
        ended = [timeout for timeout in self._uses if not timeout.expired()]
        for timeout in ended:
            timeout.reschedule(asyncio.get_running_loop().time())
        return len(ended)

    async def _next_finished(self) -> None:
        self._finished.clear()
        await self._finished.wait()
