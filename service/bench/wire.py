"""What the bench's clients are made of: JSON over HTTP, a closed loop, and a process of their own."""

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

from service.loadtest.load.connection import Pool
from vbon.errors import VbonError

Item = TypeVar("Item")
Work = Callable[[Item], Awaitable[None]]


class SideError(VbonError):
    """A side of a comparison cannot be measured; carries its own words."""


class Connection:
    """POSTs of JSON to one URL, one at a time, over a connection that is kept open."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._name = f"{address.netloc}{address.path}"
        self._target = address.path + (f"?{address.query}" if address.query else "")
        self._pool = Pool(url)

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and content of the answer."""
        async with self._pool.post(self._target, body) as response:
            return response.status, await response.read()

    async def ask(self, body: Mapping[str, Any]) -> Any:
        """The JSON of a good answer.

        Raises:
            SideError: on any status but 200.
        """
        status, content = await self.post(json.dumps(body).encode())
        if status != 200:
            words = content[:500].decode(errors="replace")
            raise SideError(f"{self._name} answered {status}: {words}")
        return json.loads(content)

    async def close(self) -> None:
        """Close it; the next request opens another."""
        await self._pool.close()


@asynccontextmanager
async def connected(*urls: str) -> AsyncGenerator[tuple[Connection, ...], None]:
    """A connection to each URL, opened with its first request."""
    connections = tuple(Connection(url) for url in urls)
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
