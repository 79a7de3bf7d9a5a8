"""Parts of the bench's clients: JSON over HTTP, a closed loop, and running in a child process."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import urlsplit

from service.loadtest.load.connection import ConnectionPool
from vbon.errors import VbonError

Item = TypeVar("Item")
Work = Callable[[Item], Awaitable[None]]


class SideError(VbonError):
    """A side of a comparison cannot be measured; the message says why."""


class JsonConnection:
    """POSTs JSON to one URL, one request at a time, over a connection that stays open."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._name = f"{address.netloc}{address.path}"
        self._target = address.path + (f"?{address.query}" if address.query else "")
        self._pool = ConnectionPool(url)

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Send a body; return status and content of the response."""
        async with self._pool.post(self._target, body) as response:
            return response.status, await response.read()

    async def ask(self, body: Mapping[str, Any]) -> Any:
        """Send a body; return the JSON of the response.

        Raises:
            SideError: the status is not 200.
        """
        status, content = await self.post(json.dumps(body).encode())
        if status != 200:
            words = content[:500].decode(errors="replace")
            raise SideError(f"{self._name} answered {status}: {words}")
        return json.loads(content)

    async def close(self) -> None:
        """Close the connection; the next request opens another."""
        await self._pool.close()


@asynccontextmanager
async def connected(*urls: str) -> AsyncGenerator[tuple[JsonConnection, ...], None]:
    """Yield one connection to each URL; each opens with its first request."""
    connections = tuple(JsonConnection(url) for url in urls)
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
    """Process all items with ``concurrency`` workers, one item at a time each; return the seconds taken.

    Args:
        worker: makes a worker's context, usually its connections, and yields the function that processes
            an item and its index.
    """
    waiting: Iterable[tuple[int, Item]] = iter(list(enumerate(items)))

    async def one() -> None:
        async with worker() as work:
            for entry in waiting:
                await work(entry)

    begun = perf_counter()
    await asyncio.gather(*(one() for _ in range(min(concurrency, len(items)))))
    return perf_counter() - begun


async def run_in_child(command: Sequence[str], job: Mapping[str, Any]) -> Any:
    """Run a command with the job as JSON on its standard input; return the JSON that it prints.

    Raises:
        SideError: the command failed; the message has the end of its standard error.
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
