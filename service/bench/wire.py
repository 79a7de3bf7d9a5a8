"""What the bench's clients are made of: plain HTTP, a closed loop, and a process of their own.

Plain streams, because on a small machine what the client costs is taken from the server, and httpx's
connection pool costs some 20 ms a request with 256 in flight: it walks all of them for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from bestofn.errors import BestOfNError

Item = TypeVar("Item")
Work = Callable[[Item], Awaitable[None]]


class SideError(BestOfNError):
    """A side of a comparison cannot be measured; carries its own words."""


class Connection:
    """HTTP/1.1 POSTs of JSON to one address: kept alive, answers with ``Content-Length``.

    A server that closes, after its answer or when nothing was asked for a while, is connected to anew.
    """

    def __init__(self, address: SplitResult) -> None:
        self._address = address
        target = address.path + (f"?{address.query}" if address.query else "")
        self._head = (
            f"POST {target} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and content of the answer."""
        if self._streams is not None:
            # Servers close what has been idle for some seconds, maybe just as this is sent.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                return await self._exchange(*self._streams, body)
            await self.close()
        address = self._address
        self._streams = await asyncio.open_connection(address.hostname, address.port)
        return await self._exchange(*self._streams, body)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
    ) -> tuple[int, bytes]:
        writer.write(self._head + str(len(body)).encode() + b"\r\n\r\n" + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        content = await reader.readexactly(length)
        if b"\r\nconnection: close" in head or head.startswith(b"http/1.0"):
            await self.close()
        return int(head.split(b" ", 2)[1]), content

    async def ask(self, body: Mapping[str, Any]) -> Any:
        """The JSON of a good answer.

        Raises:
            SideError: on any status but 200.
        """
        status, content = await self.post(json.dumps(body).encode())
        if status != 200:
            where = f"{self._address.netloc}{self._address.path}"
            raise SideError(f"{where} answered {status}: {content[:500].decode(errors='replace')}")
        return json.loads(content)

    async def close(self) -> None:
        """Close it; the next request opens another."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
            with contextlib.suppress(OSError):
                await streams[1].wait_closed()


@asynccontextmanager
async def connected(*urls: str) -> AsyncGenerator[tuple[Connection, ...], None]:
    """A connection to each URL, opened with its first request."""
    connections = tuple(Connection(urlsplit(url)) for url in urls)
    try:
        yield connections
    finally:
        for connection in connections:
            await connection.close()


async def closed_loop(
    items: Sequence[Item],
    concurrency: int,
    worker: Callable[[], AbstractAsyncContextManager[Work[tuple[int, Item]]]],
) -> float:
    """Seconds in which so many workers did everything, each one thing after the other.

    Args:
        worker: makes the context of one worker, connections usually, and what it does with an item
            and its index.
    """
    waiting: Iterable[tuple[int, Item]] = iter(list(enumerate(items)))

    async def one() -> None:
        async with worker() as work:
            for entry in waiting:
                await work(entry)

    begun = perf_counter()
    await asyncio.gather(*(one() for _ in range(min(concurrency, len(items)))))
    return perf_counter() - begun


async def elsewhere(command: Sequence[str], job: Mapping[str, Any]) -> Any:
    """What a process of its own, given the job as JSON, prints as JSON.

    Raises:
        SideError: it failed; with the end of what it said.
    """
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=said
        )
        try:
            output, _ = await process.communicate(json.dumps(job).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            said.seek(0)
            words = said.read().decode(errors="replace").strip()[-2000:]
            name = " ".join(Path(part).name for part in command[:3])
            raise SideError(f"{name} ended with status {process.returncode}: {words}")
    return json.loads(output)
