"""Tests of the load test's HTTP client against a server that writes raw bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from service.loadtest.load.connection import ConnectionPool, ProtocolError

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@asynccontextmanager
async def server(handle: Handler) -> AsyncGenerator[ConnectionPool, None]:
    """A pool connected to a server whose connections ``handle`` serves; its third argument counts from 1."""
    count = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        try:
            await handle(reader, writer, count)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    pool = ConnectionPool(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    try:
        yield pool
    finally:
        await pool.close()
        listening.close()


async def take(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return await reader.readexactly(length)


async def test_a_connection_serves_many_requests_and_chunks_are_joined() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        while True:
            body = await take(reader)
            if body == b"plain":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                writer.write(b"3\r\nhel\r\n2;x=1\r\nlo\r\n0\r\n\r\n")

    async with server(handle) as pool:
        for body in (b"plain", b"chunks", b"plain"):
            async with pool.post("/", body) as response:
                assert (response.status, await response.read()) == (200, b"hello")
        assert pool.opened == 1


async def test_what_the_server_closed_while_idle_is_not_used() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await take(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with server(once) as pool:
        for _ in range(3):
            async with pool.post("/", b"{}") as response:
                assert await response.read() == b"ok"
        assert pool.opened == 3


async def test_a_kept_connection_that_breaks_before_the_answer_is_replaced_once() -> None:
    async def first_dies_later(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        await take(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await take(reader)
        if number > 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with server(first_dies_later) as pool:
        for _ in range(2):
            async with pool.post("/", b"{}") as response:
                assert await response.read() == b"ok"
        assert pool.opened == 2


async def test_a_fresh_connection_that_breaks_is_an_error_and_so_is_half_an_answer() -> None:
    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        if await take(reader) == b"half":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")

    async with server(dies) as pool:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            async with pool.post("/", b"{}"):
                pass
        with pytest.raises(asyncio.IncompleteReadError):
            async with pool.post("/", b"half") as response:
                await response.read()


async def test_what_is_not_http_is_told() -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await take(reader)
        writer.write(b"220 mail ready\r\n\r\n")

    async with server(nonsense) as pool:
        with pytest.raises(ProtocolError, match="220 mail ready"):
            async with pool.post("/", b"{}"):
                pass


async def test_a_refused_connection_is_an_os_error() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        return

    async with server(never) as pool:
        pass
    with pytest.raises(OSError):  # noqa: PT011  (whatever the system calls it)
        async with pool.post("/", b"{}"):
            pass
