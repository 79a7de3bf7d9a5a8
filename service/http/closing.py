"""Closes connections so that clients which still send, or no longer do, get their answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

# A client that has sent nothing for this long has stopped sending, so its connection can be closed.
LINGER_IDLE_S = 2.0
# Time between two looks at a half-closed connection, and the number of looks from one probe to the next.
LOOK_S = 0.25
LOOKS_PER_PROBE = 20
# Clients ignore an interim response, but a socket that is closed answers it with a reset.
PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Lingering:
    """Ends a connection whose client may still be sending: reads and discards for a while, then closes.

    Closing a socket that holds unread bytes resets the connection, and the client loses a response that it
    has not read yet. So only the sending direction is closed at first.

    Args:
        limit_s: longest time to wait for the client to stop.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, limit_s: float
    ) -> None:
        self._transport, self._loop = transport, loop
        self._until_s = loop.time() + limit_s
        self._heard = False
        transport.write_eof()
        self._timer = loop.call_later(LINGER_IDLE_S, self._look)

    def heard(self) -> None:
        """Note that the client has sent something, which is discarded."""
        self._heard = True

    def stop(self) -> None:
        """Cancel the timer: the connection is closed."""
        self._timer.cancel()

    def _look(self) -> None:
        if not self._heard or self._loop.time() >= self._until_s:
            self._transport.close()
            return
        self._heard = False
        self._timer = self._loop.call_later(LINGER_IDLE_S, self._look)


class HalfClosedWatch:
    """Finds out whether a client that has closed its sending direction still reads.

    A client that waits for its answer and one that has gone send the same FIN. Only the second answers data
    with a reset, so an interim response is sent now and then. Connections of clients that have gone are
    aborted.

    Args:
        may_probe: whether an interim response can be sent now, which is not so in the middle of a response.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        may_probe: Callable[[], bool],
    ) -> None:
        self._transport, self._loop, self._may_probe = transport, loop, may_probe
        self._looks = 0
        self._timer = loop.call_later(LOOK_S, self._look)

    def stop(self) -> None:
        """Cancel the timer: the connection is closed."""
        self._timer.cancel()

    def _look(self) -> None:
        if self._was_reset():
            self._transport.abort()
            return
        if self._looks % LOOKS_PER_PROBE == 0 and self._may_probe():
            self._transport.write(PROBE)
        self._looks += 1
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def _was_reset(self) -> bool:
        held = self._transport.get_extra_info("socket")
        return held is not None and held.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
