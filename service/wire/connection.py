"""Connections of whole messages over the event loop's own sockets.

A message is one or several frames that are written at once, each after its length in four bytes. ZeroMQ does
the same in threads of its own, which cost a client 50 to 75 us of CPU time for a round trip, against 25 us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import cast

_LENGTH = 4
# Seconds in which what was sent may still leave a connection that is closed.
_FLUSH_S = 5.0


class OversizedFrameError(Exception):
    """A frame that is longer than the limit; its bytes are not read."""


class Connection(asyncio.Protocol):
    """One connection.

    A send never waits: the wire bounds what is on its way itself (:data:`service.wire.messages.WINDOW`).

    Attributes:
        max_bytes: limit of a frame, which may be changed between two of them.

    Args:
        on_frames: called with the frames that have arrived.
        on_oversized: called with the length of a frame over the limit, after which nothing more is read.
        on_lost: called once when the connection has ended, whoever ended it.
    """

    def __init__(
        self,
        on_frames: Callable[[Connection, list[bytes]], None],
        on_oversized: Callable[[Connection, int], None],
        on_lost: Callable[[Connection], None],
        *,
        max_bytes: int,
        on_made: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        self._on_frames, self._on_oversized = on_frames, on_oversized
        self._on_lost, self._on_made = on_lost, on_made
        self.max_bytes = max_bytes
        self._transport: asyncio.Transport | None = None
        # The beginning of a frame: its pieces, their length, and the length with which it may be whole.
        self._pieces: list[bytes] = []
        self._have, self._wanted = 0, _LENGTH
        self._reads = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        """Hand on the frames that are whole."""
        if not self._reads:
            return
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._wanted:
                return
            data = b"".join(self._pieces)
        try:
            frames, rest, self._wanted = _frames(data, self.max_bytes)
        except OversizedFrameError as error:
            self._reads = False
            self._on_oversized(self, error.args[0])
            return
        self._pieces, self._have = [rest] if rest else [], len(rest)
        if frames:
            self._on_frames(self, frames)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell of the end."""
        self._transport = None
        self._reads = False
        self._on_lost(self)

    def send(self, frames: Sequence[bytes]) -> None:
        """Send one message; nothing happens if the connection has ended."""
        if self._transport is not None and self.open:
            parts: list[bytes] = []
            for frame in frames:
                parts += (len(frame).to_bytes(_LENGTH, "big"), frame)
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        """End the connection once what was sent has left, or soon; nothing more is read."""
        self._reads = False
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.close()
        if self._transport.get_write_buffer_size():  # the other side does not read
            loop = asyncio.get_running_loop()
            loop.call_later(_FLUSH_S, self._transport.abort, context=Context())

    @property
    def open(self) -> bool:
        """True until the connection has ended."""
        return self._transport is not None and not self._transport.is_closing()


def _frames(data: bytes, max_bytes: int) -> tuple[list[bytes], bytes, int]:
    """The whole frames of these bytes, the bytes after them, and how many a next frame needs at least.

    Raises:
        OversizedFrameError: a frame is too long; those before it are lost.
    """
    frames: list[bytes] = []
    begin = 0
    while True:
        body = begin + _LENGTH
        if body > len(data):
            return frames, data[begin:], _LENGTH
        length = int.from_bytes(data[begin:body], "big")
        if length > max_bytes:
            raise OversizedFrameError(length)
        if body + length > len(data):
            return frames, data[begin:], _LENGTH + length
        frames.append(data[body : body + length])
        begin = body + length


async def connect(address: str, made: Callable[[], Connection]) -> Connection:
    """Connect to an address.

    Raises:
        OSError: nobody listens there, or it is not an address.
    """
    loop = asyncio.get_running_loop()
    kind, place = _split(address)
    if kind == "ipc":
        _, found = await loop.create_unix_connection(made, place)
    else:
        host, port = _host_and_port(place)
        _, found = await loop.create_connection(made, host, port)
    return found


class Listener:
    """A listening socket."""

    def __init__(self, server: asyncio.AbstractServer, address: str) -> None:
        self._server = server
        self.address = address

    @classmethod
    async def open(cls, address: str, made: Callable[[], Connection]) -> Listener:
        """Listen at an address, whose port may be ``*``.

        Raises:
            OSError: the address cannot be used.
        """
        loop = asyncio.get_running_loop()
        kind, place = _split(address)
        if kind == "ipc":
            return cls(await loop.create_unix_server(made, place), address)
        host, port = _host_and_port(place)
        server = await loop.create_server(made, host, port)
        bound = server.sockets[0].getsockname()[1]
        return cls(server, f"tcp://{place.rpartition(':')[0]}:{bound}")

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()
        kind, place = _split(self.address)
        if kind == "ipc":
            with contextlib.suppress(OSError):
                os.unlink(place)


def _split(address: str) -> tuple[str, str]:
    kind, separator, place = address.partition("://")
    if not separator or kind not in ("ipc", "tcp") or not place:
        raise OSError(f"{address!r:.100} is neither ipc://PATH nor tcp://IP:PORT")
    return kind, place


def _host_and_port(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    if port != "*" and not port.isdigit():
        raise OSError(f"{place!r:.100} is not IP:PORT")
    return host.strip("[]"), 0 if port == "*" else int(port)
