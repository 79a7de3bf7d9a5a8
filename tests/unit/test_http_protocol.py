"""Limits on request heads and bodies, and on clients that do not read, over a real port."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import struct
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.http import closing, sse
from service.http import uvicorn_protocol as http_protocol
from service.http.uvicorn_protocol import http_options
from service.settings import LimitSettings
from tests.unit.fakes import FakeEngine, make_runtime, on_a_port
from tests.unit.listening import listening
from tests.unit.virtual_clock import virtually
from vbon.errors import InvalidInputError

LIMITS = {
    "max_header_bytes": 2048,
    "max_header_fields": 20,
    "receive_timeout_s": 0.3,
    "keep_alive_s": 1,
}
HEAD = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"
# The response takes three times `receive_timeout_s`.
SLOW_BODY = json.dumps({"prompt": "p", "max_tokens": 9, "ignore_eos": True}).encode()
SLOW = b"POST /generate?mode=ref HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(
    SLOW_BODY
)
SLOW += SLOW_BODY


clocked = virtually("service", "vbon", "tests.unit")


@asynccontextmanager
async def serving() -> AsyncGenerator[int, None]:
    """A server with these limits; its port. No thread of a reward model runs beside the virtual clock."""
    engines = {"ref": FakeEngine(seconds_per_token=0.1)}
    runtime = make_runtime(engines=engines, without_reward=True, limits=LIMITS)
    options = http_options(runtime.settings.limits)
    async with on_a_port(runtime, timeout_graceful_shutdown=5, **options) as url:
        number = urlsplit(url).port
        assert number is not None
        yield number


async def say(port: int, *pieces: bytes, pause_s: float = 0.0) -> tuple[int, str]:
    """Send the pieces; return the status and the rest of all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(reader.read())
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(pause_s)
        if reading.done():
            break
    try:
        async with asyncio.timeout(60):
            answer = (await reading).decode()
    finally:
        writer.close()
    return int(answer.split(" ")[1]), answer.partition("\r\n\r\n")[2]


@clocked
async def test_an_ordinary_request_is_answered() -> None:
    async with serving() as port:
        status, body = await say(port, HEAD + b"connection: close\r\n\r\n")
        assert (status, json.loads(body)) == (200, {"status": "alive"})


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"x: " + b"a" * 3000 + b"\r\n\r\n",
        HEAD + b"x: " + b"a" * 3000,  # never ends
        b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        HEAD + b"".join(b"x%d: a\r\n" % i for i in range(30)) + b"\r\n",
    ],
    ids=["one large field", "one that does not end", "a long path", "many fields"],
)
@clocked
async def test_a_head_past_the_limits_is_refused(head: bytes) -> None:
    async with serving() as port:
        status, body = await say(port, head)
        error = json.loads(body)["error"]
        assert (status, error["type"]) == (431, "headers_too_large")
        assert "2048 bytes" in error["message"]


@clocked
async def test_the_limit_is_a_request_s_not_a_connection_s() -> None:
    async with serving() as port:
        request = HEAD + b"x: " + b"a" * 900 + b"\r\n"
        status, body = await say(
            port, *[request + b"\r\n"] * 4, request + b"connection: close\r\n\r\n", pause_s=0.02
        )
        assert status == 200
        assert body.count("alive") == 5


@clocked
async def test_a_head_that_trickles_is_ended() -> None:
    async with serving() as port:
        status, body = await say(port, *[bytes([byte]) for byte in HEAD], pause_s=0.05)
        assert (status, json.loads(body)["error"]["type"]) == (408, "request_timeout")


@clocked
async def test_a_body_that_trickles_is_ended() -> None:
    async with serving() as port:
        head = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
        status, body = await say(port, head, *[b" "] * 12, pause_s=0.05)
        assert (status, json.loads(body)["error"]["type"]) == (408, "request_timeout")


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\r\n"],
        [b"POST /b HTTP/1.1\r\n"],
        [HEAD + b"x: " + b"a" * 3000, b"a" * 3000],
        [b"GET /b HTTP/1.1\r\n" + b"x: a\r\n" * 1000, b"x: a\r\n" * 1000],
        [b"hello\r\n\r\n", b"hello\r\n\r\n"],
    ],
    ids=["a line break", "half a head", "too large a head", "too many fields", "no head"],
)
@clocked
async def test_what_comes_during_an_answer_does_not_break_it(pieces: list[bytes]) -> None:
    async with serving() as port:
        status, body = await say(port, SLOW, *pieces, pause_s=0.02)
        assert (status, json.loads(body)["usage"]["returned_tokens"]) == (200, 9)


@clocked
async def test_a_head_that_begins_during_an_answer_may_end_after_it() -> None:
    async with serving() as port:
        status, body = await say(port, SLOW + HEAD, b"x: a\r\n", b"\r\n", pause_s=0.6)
        assert (status, body.count("HTTP/1.1 200 OK"), body.count("alive")) == (200, 1, 1)


@clocked
async def test_a_head_that_begins_during_an_answer_and_trickles_is_ended() -> None:
    async with serving() as port:
        status, body = await say(port, SLOW, *[bytes([byte]) for byte in HEAD * 2], pause_s=0.05)
        answer, _, refusal = body.partition("HTTP/1.1 408 ")
        assert (status, json.loads(answer)["usage"]["returned_tokens"]) == (200, 9)
        assert "request_timeout" in refusal


@clocked
async def test_queued_requests_are_answered_before_what_is_wrong_behind_them() -> None:
    async with serving() as port:
        status, body = await say(port, SLOW + HEAD + b"\r\n", b"hello\r\n\r\n", pause_s=0.02)
        assert (status, body.count("HTTP/1.1 200 OK"), body.count("alive")) == (200, 1, 1)
        assert "HTTP/1.1 400" not in body


@clocked
async def test_a_body_that_is_no_body_is_told_so_at_once() -> None:
    async with serving() as port:
        head = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        status, body = await say(port, head, b"hello\r\n", pause_s=0.05)
        assert (status, json.loads(body)["error"]["type"]) == (400, "bad_request")


@clocked
async def test_a_silent_connection_is_closed() -> None:
    async with serving() as port:
        status, _ = await say(port)
        assert status == 408


@clocked
async def test_an_idle_connection_stays_open_for_its_time_and_no_longer() -> None:
    async with serving() as port:
        request = HEAD + b"\r\n"
        begun = perf_counter()
        status, body = await say(port, request, request, pause_s=0.7)
        assert (status, body.count("alive")) == (200, 2)
        assert perf_counter() - begun >= 1.7


JSON = b"content-type: application/json\r\n"
GENERATE = json.dumps({"prompt": "p", "n": 1, "max_tokens": 3, "ignore_eos": True}).encode()
SMUGGLED = b"GET /modes HTTP/1.1\r\nhost: localhost\r\n\r\n"
UPGRADES = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
    "websocket": b"Connection: upgrade\r\nUpgrade: websocket\r\nsec-websocket-key: a\r\n",
    "foo": b"upgrade: foo\r\nconnection: keep-alive, UPGRADE\r\n",
    "no name": b"connection: upgrade\r\n",
    "no connection": b"upgrade: h2c\r\n",
}


async def statuses(port: int, *pieces: bytes, pause_s: float = 0.0) -> list[int]:
    """The statuses of all final responses on one connection."""
    status, rest = await say(port, *pieces, pause_s=pause_s)
    return [status, *(int(part[:3]) for part in rest.split("HTTP/1.1 ")[1:])]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("pause_s", [0.0, 0.03])
@clocked
async def test_a_body_behind_an_upgrade_is_a_body(upgrade: str, pause_s: float) -> None:
    async with serving() as port:
        head = b"POST /generate?mode=ref HTTP/1.1\r\nhost: localhost\r\n" + JSON + UPGRADES[upgrade]
        framed = head + b"content-length: %d\r\n\r\n" % len(GENERATE)
        last = HEAD + b"connection: close\r\n\r\n"
        assert await statuses(port, framed, GENERATE, last, pause_s=pause_s) == [200, 200]
        chunked = head + b"transfer-encoding: chunked\r\n\r\n"
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GENERATE), GENERATE)
        assert await statuses(port, chunked, chunks, last, pause_s=pause_s) == [200, 200]
        # The body that was once read as a request of its own is an invalid body.
        hidden = head + b"content-length: %d\r\n\r\n" % len(SMUGGLED)
        assert await statuses(port, hidden, SMUGGLED, last, pause_s=pause_s) == [422, 200]
        assert await statuses(port, HEAD + UPGRADES[upgrade] + b"\r\n", last, pause_s=pause_s) == [
            200,
            200,
        ]


@clocked
async def test_a_head_with_an_upgrade_has_the_same_limits() -> None:
    async with serving() as port:
        upgrade = UPGRADES["h2c"]
        assert await statuses(port, HEAD + upgrade + b"x: " + b"a" * 3000 + b"\r\n\r\n") == [431]
        both = b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
        assert await statuses(port, HEAD + upgrade + both) == [400]


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"chunked, gzip", b"xchunked", b""])
@pytest.mark.parametrize("upgrade", [b"", UPGRADES["h2c"]])
@clocked
async def test_a_body_without_a_known_end_is_refused(coding: bytes, upgrade: bytes) -> None:
    async with serving() as port:
        head = HEAD + upgrade + b"transfer-encoding: " + coding + b"\r\n\r\n"
        assert await statuses(port, head + SMUGGLED) == [400]


@clocked
async def test_http_1_0_has_no_chunks() -> None:
    async with serving() as port:
        head = b"POST /generate HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        assert await statuses(port, head + b"0\r\n\r\n") == [400]


async def heard(port: int, request: bytes) -> tuple[str, str]:
    """Head and body of all that comes back, as it is on the wire."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(60):
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return head, body


@clocked
async def test_a_stream_to_http_1_0_has_no_chunks_either() -> None:
    """It ends with its connection, as nginx expects of a server that it asks by HTTP/1.0."""
    body = json.dumps({"prompt": "p", "max_tokens": 3, "ignore_eos": True, "stream": True}).encode()
    head = b" /generate?mode=ref HTTP/%s\r\nhost: localhost\r\nconnection: close\r\n" + JSON
    head += b"content-length: %d\r\n\r\n" % len(body)
    async with serving() as port:
        old = await heard(port, b"POST" + head % b"1.0" + body)
        new = await heard(port, b"POST" + head % b"1.1" + body)
    assert "transfer-encoding" in new[0]
    assert "transfer-encoding" not in old[0]
    assert "connection: close" in old[0]
    events = [line for line in old[1].split("\n") if line]
    assert {line.partition(":")[0] for line in events} <= {"event", "data", ""}
    assert old[1].endswith("\n\n")
    assert old[1].count("event: ") == new[1].count("event: ") > 1


@pytest.mark.parametrize("path", [b"/healthz", b"/generate?mode=ref"])
@clocked
async def test_http_1_0_is_sent_no_interim_response(path: bytes) -> None:
    head = b"POST %s HTTP/1.0\r\nhost: localhost\r\nexpect: 100-continue\r\n" % path + JSON
    async with serving() as port:
        told, _ = await heard(port, head + b"content-length: %d\r\n\r\n" % len(GENERATE) + GENERATE)
    assert "100" not in told.split("\r\n")[0]


@pytest.mark.parametrize("version", [b"0.9", b"2.0"])
@clocked
async def test_other_versions_are_refused(version: bytes) -> None:
    async with serving() as port:
        head = b"GET /healthz HTTP/%s\r\nhost: localhost\r\n\r\n" % version
        status, body = await say(port, head)
        assert (status, json.loads(body)["error"]["type"]) == (400, "bad_request")
        assert "send HTTP/1.1" in body


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost/healthz", 200),
        (b"HTTP://LocalHost/healthz", 200),
        (b"http://evil.example/healthz", 400),
        (b"http://localhost:1/healthz", 400),
        (b"http://u@localhost/healthz", 400),
        (b"/healthz?at=http://evil.example/", 200),
    ],
)
@clocked
async def test_a_whole_url_names_the_host_of_the_header(target: bytes, status: int) -> None:
    async with serving() as port:
        head = b"GET %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % target
        assert await statuses(port, head) == [status]


@clocked
async def test_a_tunnel_is_refused() -> None:
    async with serving() as port:
        assert await statuses(port, b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n" + SMUGGLED) == [
            400
        ]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nHOST: b\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: a\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost:\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: a b\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: a/b\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: u@a\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: [::1]:8000\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost:8000\r\n", 200),
        (b"GET /healthz HTTP/1.0\r\n", 200),
        (b"GET /healthz HTTP/1.0\r\nhost: a\r\nhost: b\r\n", 400),
    ],
)
@clocked
async def test_a_request_has_one_host(head: bytes, status: int) -> None:
    async with serving() as port:
        found, body = await say(port, head + b"connection: close\r\n\r\n")
        assert found == status
        assert status == 200 or json.loads(body)["error"]["type"] == "bad_request"


@clocked
async def test_trailers_are_no_headers_and_have_an_end() -> None:
    async with serving() as port:
        head = (
            b"POST /generate?mode=ref HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + JSON
        )
        head += b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(GENERATE), GENERATE)
        status, body = await say(
            port, head + b"content-type: text/plain\r\nx-request-id: mine\r\n\r\n"
        )
        assert status == 200
        assert "mine" not in body
        assert await statuses(port, head, *[b"x: " + b"a" * 1500 + b"\r\n"] * 4, pause_s=0.01) == [
            431
        ]


@clocked
async def test_a_body_over_the_limit_has_its_answer_read() -> None:
    """Also by clients that send everything before they read, as http.client does."""
    async with serving() as port:

        def upload(headers: dict[str, str], length: int) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            try:
                connection.request("POST", "/generate", b"x" * length, headers)
                return connection.getresponse().status
            finally:
                connection.close()

        plain = [upload for _ in range(8)]
        tried = await asyncio.gather(
            *(asyncio.to_thread(one, {}, 8_000_000) for one in plain),
            asyncio.to_thread(upload, {"transfer-encoding": "chunked", "x": "y"}, 100),
        )
        assert tried[:-1] == [413] * 8
        assert tried[-1] == 400  # not in chunks, whatever it says


@clocked
async def test_one_that_never_stops_sending_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as port:
        monkeypatch.setattr(closing, "LINGER_IDLE_S", 0.05)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n"
        )
        assert b" 413 " in await reader.readuntil(b"\r\n")

        async def send_for_ever() -> None:
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionError):
            await send_for_ever()
        writer.close()


@pytest.mark.parametrize("request_bytes", [SLOW, SLOW + SLOW, HEAD + b"\r\n"])
@clocked
async def test_a_half_closed_client_gets_its_answers(
    request_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as port:
        monkeypatch.setattr(closing, "LOOK_S", 0.05)  # so that it is probed in the middle
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        writer.write_eof()
        async with asyncio.timeout(60):
            told = (await reader.read()).decode()
        writer.close()
        final = told.replace("HTTP/1.1 100 Continue\r\n\r\n", "")
        assert final.startswith("HTTP/1.1 200 OK\r\n")
        assert final.count("HTTP/1.1 ") == max(1, request_bytes.count(b"POST"))
        assert ("100 Continue" in told) == (request_bytes != HEAD + b"\r\n")


@pytest.mark.parametrize("reset", [True, False])
@clocked
async def test_a_client_that_closes_altogether_is_still_noticed(
    reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "LOOK_S", 0.02)
    engine = FakeEngine(seconds_per_token=0.1)
    runtime = make_runtime(engines={"ref": engine})
    async with on_a_port(runtime, **http_options(runtime.settings.limits)) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        body = json.dumps({"prompt": "p", "max_tokens": 200, "ignore_eos": True}).encode()
        writer.write(SLOW.partition(b"content-length")[0])
        writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(60):
            while not engine.running:  # noqa: ASYNC110  (the fake has no event for it)
                await asyncio.sleep(0.01)
            if reset:
                held = writer.get_extra_info("socket")
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            while engine.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert engine.aborted == 1


@clocked
async def test_a_slow_body_is_ended_whatever_the_method() -> None:
    async with serving() as port:
        head = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
        assert await statuses(port, head, *[b" "] * 12, pause_s=0.05) == [408]


@clocked
async def test_garbage_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as port:
        caplog.set_level("INFO")
        caplog.clear()  # what the server said at its start, if another test has let uvicorn speak
        for _ in range(30):
            assert await statuses(port, b"hello\r\n\r\n") == [400]
            assert await statuses(port, HEAD + UPGRADES["h2c"] + b"connection: close\r\n\r\n") == [
                200
            ]
        told = [one.getMessage() for one in caplog.records if one.name != "uvicorn.access"]
        assert len(told) <= 2


def test_without_httptools_the_service_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn alone would fall back to h11, under which the rules of this file do not hold."""
    monkeypatch.delitem(sys.modules, "service.http.httptools_protocol", raising=False)
    monkeypatch.setitem(sys.modules, "httptools", None)  # as if it were not installed
    with pytest.raises(InvalidInputError, match="pip install httptools"):
        http_options(LimitSettings())


def test_idle_connections_outlive_those_of_clients() -> None:
    assert make_runtime().settings.limits.keep_alive_s > (httpx.Limits().keepalive_expiry or 0)


@clocked
async def test_what_is_no_http_is_told_so_in_the_shape_of_errors() -> None:
    async with serving() as port:
        status, body = await say(port, b"hello\r\n\r\n")
        assert (status, json.loads(body)["error"]["type"]) == (400, "bad_request")


@clocked
async def test_what_a_client_sent_is_not_repeated_whole() -> None:
    async with serving() as port:
        body = json.dumps({"model": "m" * 50_000, "prompt": "a"}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        status, told = await say(port, head + b"content-length: %d\r\n\r\n" % len(body) + body)
        message = json.loads(told)["error"]["message"]
        assert status == 404
        assert len(message) < 4100
        assert message.startswith("the model 'mmm")


def answering(answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> uvicorn.Config:
    """Configuration of a server that answers every request with ``answer``."""
    options: dict[str, Any] = http_options(LimitSettings())
    return uvicorn.Config(answer, port=0, log_config=None, lifespan="off", **options)


async def connections_left(server: uvicorn.Server) -> int:
    """Connections left after the first has come and had time to be closed."""
    connections, came = server.server_state.connections, False
    for _ in range(100):
        await asyncio.sleep(0.1)
        came = came or bool(connections)
        if came and not connections:
            break
    return len(connections)


LARGE = b"x" * 20_000_000  # more than the kernel buffers


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(LARGE)(scope, receive, send)


async def in_pieces(scope: Scope, receive: Receive, send: Send) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(LARGE), 100_000):
            yield LARGE[start : start + 100_000]

    await StreamingResponse(pieces())(scope, receive, send)


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    async def events() -> AsyncGenerator[str, None]:
        while True:
            yield "data: " + "x" * 100_000 + "\n\n"

    await sse.EventStream("data: x\n\n", events(), repr)(scope, receive, send)


@pytest.mark.parametrize("answer", [large, in_pieces, endless])
@pytest.mark.parametrize("last", [b"\r\n", b"connection: close\r\n\r\n"])
@clocked
async def test_the_connection_of_a_client_that_reads_nothing_is_cut(
    answer: Callable[[Scope, Receive, Send], Awaitable[None]],
    last: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "_STALL_S", 0.3)
    monkeypatch.setattr(http_protocol, "UNREAD_S", 0.5)
    async with listening(answering(answer)) as (server, port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.send(HEAD + last)
            assert await connections_left(server) == 0


@pytest.mark.parametrize("answer", [large, in_pieces])
@clocked
async def test_one_that_reads_slowly_gets_all_of_it(
    answer: Callable[[Scope, Receive, Send], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "UNREAD_S", 0.5)
    async with listening(answering(answer)) as (_, port):
        # The small limit keeps asyncio from reading ahead, so reading takes several times UNREAD_S.
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=100_000)
        writer.write(HEAD + b"connection: close\r\n\r\n")
        begun, taken = perf_counter(), 0
        while piece := await reader.read(700_000):
            taken += piece.count(b"x")
            await asyncio.sleep(0.02)
        writer.close()
        assert taken >= len(LARGE)
        assert perf_counter() - begun > 1
