"""HTTP spoken byte by byte, so that it can be spoken badly or broken off."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx

_RESET = struct.pack("ii", 1, 0)


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        """Hand it to the socket."""
        with suppress(ConnectionError, RuntimeError):
            self.writer.write(data)

    async def response(self, limit_s: float = 60.0) -> httpx.Response:
        """The next response on the connection, read to its end.

        Raises:
            ConnectionError, asyncio.IncompleteReadError: it broke off.
            TimeoutError: it did not come.
        """
        async with asyncio.timeout(limit_s):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            fields = [line.partition(":")[::2] for line in lines]
            headers = httpx.Headers([(name, value.strip()) for name, value in fields])
            if headers.get("transfer-encoding") == "chunked":
                body = await self._chunks()
            else:
                body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        headers.pop("transfer-encoding", None)
        return httpx.Response(int(first.split(" ")[1]), headers=headers, content=body)

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()
        return body

    async def rest(self, limit_s: float = 60.0) -> bytes:
        """Everything until the server closes; empty if it closed without a word.

        Raises:
            TimeoutError: it did not close.
        """
        async with asyncio.timeout(limit_s):
            with suppress(ConnectionError):
                return await self.reader.read()
        return b""

    def leave(self, *, reset: bool = False) -> None:
        """Close in good order, or as a client that died: whatever is under way is cut off."""
        if reset and (held := self.writer.get_extra_info("socket")) is not None:
            with suppress(OSError):
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()


@asynccontextmanager
async def wire(url: str) -> AsyncGenerator[Wire, None]:
    """A connection to a server; closed afterwards, if it is not yet."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**24)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def post(
    target: str, body: bytes | dict[str, Any], *fields: str, length: int | None = None
) -> bytes:
    """A request in full; ``length`` is what it says of its body, if not the truth."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    head = [
        f"POST {target} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(body) if length is None else length}",
        *fields,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
