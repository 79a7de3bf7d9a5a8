"""The requests in flight: their time limits, and the engines and scorers they use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar

from vbon.errors import NotReadyError, RequestTimeoutError, ShuttingDownError

# The engines and scorers that the current task uses already.
_held: ContextVar[tuple[object, ...]] = ContextVar("held", default=())


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
        self._quiet: dict[int, asyncio.Event] = {}

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

        It first waits while one of them is kept :meth:`quiet`, unless a block around it uses that one.

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
        self._uses[timeout] = ()
        held = _held.get()
        try:
            async with timeout:
                await self._until_free([part for part in uses if part not in held])
                self._uses[timeout] = uses
                token = _held.set((*held, *uses))
                try:
                    yield
                finally:
                    _held.reset(token)
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

    @asynccontextmanager
    async def quiet(self, part: object, limit_s: float) -> AsyncGenerator[None, None]:
        """Run the block while no request uses an engine: those in flight finish first, new ones wait.

        Raises:
            NotReadyError: those in flight did not finish within ``limit_s``.
        """
        opened = self._quiet[id(part)] = asyncio.Event()
        try:
            try:
                async with asyncio.timeout(limit_s):
                    await self.until_unused(part)
            except TimeoutError as error:
                raise NotReadyError(
                    f"the requests in flight did not finish within {limit_s:g} s, so nothing was changed; "
                    "try again with less load or a higher limit_s"
                ) from error
            yield
        finally:
            del self._quiet[id(part)]
            opened.set()

    async def _until_free(self, parts: Sequence[object]) -> None:
        while waits := [self._quiet[id(part)] for part in parts if id(part) in self._quiet]:
            await waits[0].wait()

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
