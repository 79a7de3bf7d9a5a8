"""Requests that the protocol answers without the application, over a real port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from service.http.early import HOLD_S, MOST_BODY_BYTES
from service.http.uvicorn_protocol import http_options
from service.settings import LimitSettings
from tests.unit.listening import listening
from tests.unit.virtual_clock import virtually

clocked = virtually("service", "tests.unit")

KEEP_ALIVE_S = 1


@dataclass
class Service:
    """Answers ``/early`` early while ``full``, and counts what reaches the application."""

    full: bool = True
    content: bytes = b"full"
    answered: list[str] = field(default_factory=list)
    reached: list[tuple[str, bytes]] = field(default_factory=list)
    server: uvicorn.Server | None = None
    port: int = 0

    def concerns(self, method: str, path: str) -> bool:
        return method == "POST" and path == "/early"

    def response(self, scope: Scope) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
        if not self.full:
            return None
        self.answered.append(scope["query_string"].decode())
        length = str(len(self.content)).encode()
        return 429, [(b"content-length", length)], self.content

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, message = b"", {"more_body": True}
        while message.get("more_body"):
            message = await receive()  # type: ignore[assignment]
            if message["type"] == "http.disconnect":
                return
            body += message["body"]  # type: ignore[operator]
        self.reached.append((scope["path"], body))
        if scope["path"] == "/slow":
            await asyncio.sleep(3 * KEEP_ALIVE_S)
        start: Message = {"type": "http.response.start", "status": 200}
        await send(start | {"headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving(**limits: Any) -> AsyncGenerator[Service, None]:
    service = Service()
    options = http_options(LimitSettings(keep_alive_s=KEEP_ALIVE_S, **limits), None, service)
    config = uvicorn.Config(
        service.app,
        port=0,
        log_config=None,
        lifespan="off",
        interface="asgi3",
        timeout_graceful_shutdown=1,
        **options,
    )
    async with listening(config) as (service.server, service.port):
        yield service


def post(path: str, body: bytes = b"{}", *fields: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"POST %b HTTP/%b" % (path.encode(), version), b"host: localhost", *fields]
    if not any(field.startswith((b"content-length", b"transfer-")) for field in fields):
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def say(service: Service, *pieces: bytes, pause_s: float = 0.01) -> list[tuple[int, str]]:
    """Send the pieces; the status and content of each response until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause_s)
        async with asyncio.timeout(60):
            rest = (await reader.read()).decode().replace("HTTP/1.1 100 Continue\r\n\r\n", "")
    finally:
        writer.close()
    found = []
    while rest:
        head, _, rest = rest.partition("\r\n\r\n")
        length = next(int(one[15:]) for one in head.split("\r\n") if one[:15] == "content-length:")
        found.append((int(head.split(" ")[1]), rest[:length]))
        rest = rest[length:]
    return found


CLOSE = b"connection: close"


@clocked
async def test_a_request_is_answered_without_the_application() -> None:
    async with serving() as service:
        assert await say(service, post("/early?a=b", b"{}", CLOSE)) == [(429, "full")]
        assert (service.answered, service.reached) == (["a=b"], [])
        assert service.server is not None
        assert service.server.server_state.total_requests == 1


@pytest.mark.parametrize("cut", [1, 20, -3, -1])
@clocked
async def test_whatever_pieces_it_comes_in(cut: int) -> None:
    async with serving() as service:
        request = post("/early", b'{"a": 1}', CLOSE)
        assert await say(service, request[:cut], request[cut:]) == [(429, "full")]
        assert service.reached == []


@clocked
async def test_the_connection_stays_open_and_is_closed_when_idle() -> None:
    async with serving() as service:
        asked = [post(f"/early?{number}") for number in range(3)]
        assert await say(service, *asked) == [(429, "full")] * 3
        assert service.answered == ["0", "1", "2"]


@clocked
async def test_requests_in_one_piece_are_answered_in_order() -> None:
    async with serving() as service:
        asked = post("/early") + post("/other") + post("/early") + post("/other", b"x", CLOSE)
        told = await say(service, asked)
        assert [status for status, _ in told] == [429, 200, 200, 200]
        # The third waits for the second's response, so the application gets it.
        assert service.reached == [("/other", b"{}"), ("/early", b"{}"), ("/other", b"x")]


@clocked
async def test_nothing_is_done_after_the_last_answer_of_a_connection() -> None:
    async with serving() as service:
        asked = post("/early", b"{}", CLOSE) + post("/other") + post("/early")
        assert await say(service, asked) == [(429, "full")]
        assert (len(service.answered), service.reached) == (1, [])


@clocked
async def test_a_client_of_http_1_0_is_closed() -> None:
    async with serving() as service:
        assert await say(service, post("/early", version=b"1.0")) == [(429, "full")]


@clocked
async def test_a_slow_response_after_an_early_one_outlives_the_idle_limit() -> None:
    async with serving() as service:
        told = await say(service, post("/early") + post("/slow", b"{}", CLOSE))
        assert told == [(429, "full"), (200, "ok")]


@pytest.mark.parametrize(
    "request_",
    [
        post("/other", b"{}", CLOSE),
        post("/early", b"2\r\n{}\r\n0\r\n\r\n", CLOSE, b"transfer-encoding: chunked"),
        post("/early", b"{}", CLOSE, b"expect: 100-continue"),
        post("/early", b"{}", CLOSE, b"origin: http://localhost"),
        post("/early", b"x" * (MOST_BODY_BYTES + 1), CLOSE),
        post("/early", b"{}", CLOSE).replace(b"POST", b"PUT"),
    ],
    ids=["another path", "chunks", "expect", "origin", "large", "another method"],
)
@clocked
async def test_other_requests_reach_the_application(request_: bytes) -> None:
    async with serving() as service:
        told = await say(service, request_)
        assert told == [(200, "ok")]
        assert (service.answered, len(service.reached)) == ([], 1)


@pytest.mark.parametrize("pieces", [1, 2])
@clocked
async def test_what_is_not_answered_early_reaches_the_application_whole(pieces: int) -> None:
    async with serving() as service:
        service.full = False
        request = post("/early", b"0123456789", CLOSE)
        cut = len(request) if pieces == 1 else -4
        assert await say(service, request[:cut], request[cut:]) == [(200, "ok")]
        assert service.reached == [("/early", b"0123456789")]


@clocked
async def test_a_body_that_does_not_come_is_left_to_the_application() -> None:
    async with serving() as service:
        request = post("/early", b"0123456789", CLOSE)
        pieces = (request[:-4], request[-4:])
        assert await say(service, *pieces, pause_s=2 * HOLD_S) == [(200, "ok")]
        assert (service.answered, service.reached) == ([], [("/early", b"0123456789")])


@clocked
async def test_a_held_request_outlives_the_stop_of_the_server() -> None:
    async with serving() as service:
        request = post("/early", b"0123456789")
        asking = asyncio.create_task(say(service, request[:-4], request[-4:], pause_s=0.02))
        assert service.server is not None
        while not service.server.server_state.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        for connection in list(service.server.server_state.connections):
            connection.shutdown()  # type: ignore[union-attr]
        assert await asking == [(200, "ok")]


@clocked
async def test_a_client_that_leaves_a_held_request_leaves_nothing() -> None:
    async with serving() as service:
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(post("/early", b"0123456789")[:-4])
        await asyncio.sleep(HOLD_S / 4)
        writer.transport.abort()
        await asyncio.sleep(2 * HOLD_S)
        assert service.server is not None
        assert not service.server.server_state.connections
        assert (service.answered, service.reached) == ([], [])


@clocked
async def test_a_small_limit_of_bodies_is_the_applications_to_apply() -> None:
    async with serving(max_body_bytes=1024) as service:
        await say(service, post("/early", b"x" * 1025, CLOSE))
        assert len(service.reached) == 1


@clocked
async def test_a_client_that_reads_nothing_is_not_answered_without_end() -> None:
    async with serving() as service:
        service.content = b"x" * 100_000
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(post("/early") * 500)  # 50 MB of answers
        await asyncio.sleep(0.1)
        assert service.server is not None
        [connection] = service.server.server_state.connections
        assert connection.transport.get_write_buffer_size() < 1_000_000  # type: ignore[union-attr]
        assert len(service.answered) < 500
        writer.transport.abort()
        del reader
