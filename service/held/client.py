"""The holder, as the other front ends reach it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import Context

from service.auto.live import LiveAuto
from service.auto.table_in_use import TableState
from service.held.requests import Answered, Asked
from service.wire.errors import LeavingError, WireError
from service.wire.replicas import Replicas
from vbon.errors import NotReadyError

# Seconds in which a request waits for the connection to the holder, which is made anew after a start of
# either process. The holder has not seen the request then, so it is asked once.
_PATIENCE_S = 5.0
_STARTING = (
    "the process that holds this server's load tests, pairs and tables is being started; ask again in some "
    "seconds"
)


class RemoteHolder:
    """The holder in another process, whose table of mode ``auto`` this front end follows.

    Args:
        replicas: the connections to it; it is the only replica.
        patience_s: seconds in which a request waits for a connection.
    """

    def __init__(self, replicas: Replicas[TableState], *, patience_s: float = _PATIENCE_S) -> None:
        self._replicas, self._patience_s = replicas, patience_s
        self._auto: LiveAuto | None = None
        self._seen: TableState | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self, auto: LiveAuto) -> None:
        """Connect, and follow the table from then on."""
        self._auto = auto
        self._replicas.listeners.append(self._changed)
        await self._replicas.use()

    async def stop(self) -> None:
        """End the connection."""
        self._replicas.listeners.remove(self._changed)
        await self._replicas.release()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    async def ask(self, asked: Asked) -> Answered:
        """Let the holder answer a request.

        Raises:
            NotReadyError: it cannot be reached, or ended meanwhile.
            WireError: the answer is too large, or the request failed there.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._replicas.until(self._replicas.ready)
        replica = self._replicas.choose()
        if replica is None:
            raise NotReadyError(_STARTING)
        try:
            with replica.load(1):
                found: Answered = await replica.client.call("ask", asked)
        except LeavingError as error:
            raise NotReadyError(_STARTING) from error
        except WireError as error:
            if replica.client.connected:
                raise
            raise NotReadyError(
                "the process that holds this server's load tests, pairs and tables has ended meanwhile; see "
                "what it did, and ask again"
            ) from error
        return found

    def _changed(self) -> None:
        """Take over what the holder tells; called whenever anything changes."""
        told = next((one.state for one in self._replicas.ready()), None)
        if told is None or not told.known or told == self._seen:
            return
        self._seen = told
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow(), context=Context())

    async def _follow(self) -> None:
        done: TableState | None = None
        while self._auto is not None and self._seen is not None and done != self._seen:
            done = self._seen
            await self._auto.table.follow(done)
