"""A ZeroMQ socket in an event loop, without a task or a future for each message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import zmq

# Messages that are received before other work of the loop has its turn.
_AT_ONCE = 128
_NEVER_MS = 3_600_000
# Seconds in which messages that arrived before the end of a connection can be read: ZeroMQ hands them out
# just after it tells of the end.
_LAST_MESSAGES_S = 0.002


class LoopSocket:
    """Calls a function for each message that arrives, and another one when a peer has disconnected.

    A send never waits: the wire bounds what is on its way itself (:data:`service.wire.messages.WINDOW`).

    Args:
        on_message: called with the frames of each message.
        on_lost: called when a connection has ended, or could not be made.
    """

    def __init__(
        self,
        kind: int,
        on_message: Callable[[list[bytes]], None],
        on_lost: Callable[[], None],
        *,
        max_bytes: int,
    ) -> None:
        self._on_message, self._on_lost = on_message, on_lost
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        # A connection that has ended is made again by its user, who has to greet the server again. Without
        # any later attempt of its own, ZeroMQ would drop messages that have arrived and are not read yet.
        self._socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        if kind == zmq.ROUTER:
            # A send to a client that is gone fails instead of being dropped.
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        self._fds = [self._number(self._socket, zmq.FD), self._number(self._monitor, zmq.FD)]
        self._scheduled = False
        self.closed = False
        for fd, read in zip(self._fds, (self._receive, self._watch), strict=True):
            self._loop.add_reader(fd, read)
        # ZeroMQ signals a message only to a reader that has found none before.
        self._loop.call_soon(self._receive)
        self._loop.call_soon(self._watch)

    def bind(self, address: str) -> str:
        """Listen at an address, whose port may be ``*``; return the one that it is."""
        self._socket.bind(address)
        endpoint: Any = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        return str(endpoint.rstrip(b"\0").decode())

    def connect(self, address: str) -> None:
        """Begin to connect to an address."""
        self._socket.connect(address)

    def send(self, frames: Sequence[bytes]) -> bool:
        """Send one message; return False if the peer that its first frame names is gone."""
        if self.closed:
            return False
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        finally:
            self._look_again()
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Close the socket; what was sent may still leave for so long."""
        if self.closed:
            return
        self.closed = True
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._socket.disable_monitor()
        self._socket.close(linger=int(linger_s * 1000))

    def _look_again(self) -> None:
        # Any use of a socket may take the signal of a message that has arrived meanwhile.
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._scheduled = False
        self._receive()

    def _receive(self) -> None:
        for _ in range(_AT_ONCE):
            if self.closed:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_message(frames)
        self._look_again()

    def _watch(self) -> None:
        lost = False
        while not self.closed and self._number(self._monitor, zmq.EVENTS) & zmq.POLLIN:
            self._monitor.recv_multipart(zmq.NOBLOCK)
            lost = True
        if lost and not self.closed:
            self._loop.call_later(_LAST_MESSAGES_S, self._tell_lost)

    def _tell_lost(self) -> None:
        self._receive()
        if not self.closed:
            self._on_lost()

    @staticmethod
    def _number(socket: zmq.Socket[bytes], option: int) -> int:
        return int(socket.getsockopt(option))
