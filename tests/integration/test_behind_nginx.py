"""The service behind nginx, configured as docs/operations.md says: what its clients get, and what it sees."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.http.uvicorn_protocol import http_options
from service.settings import LimitSettings
from tests.unit.fakes import FakeEngine, make_runtime
from tests.unit.listening import listening
from tests.unit.nginx import nginx_before

NAME = "vbon.example"
BODY = {"prompt": "p", "max_tokens": 3, "ignore_eos": True}
ENDLESS = BODY | {"max_tokens": 200}
JSON = json.dumps(BODY).encode()
HIDDEN = b"GET /modes HTTP/1.1\r\nhost: vbon.example\r\n\r\n"


@dataclass
class Behind:
    """A server behind nginx.

    Attributes:
        port: of nginx.
        client: sends its requests to nginx.
    """

    port: int
    server: uvicorn.Server
    engine: FakeEngine
    client: httpx.AsyncClient

    async def statuses(self, *pieces: bytes) -> list[str]:
        """The statuses of all final responses on one connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        async with asyncio.timeout(60):
            told = (await reader.read()).decode()
        writer.close()
        found = [part[:3] for part in told.split("HTTP/1.1 ")[1:]]
        return [status for status in found if status != "100"]


@asynccontextmanager
async def behind_nginx(
    folder: Path,
    changes: Mapping[str, str] | None = None,
    seconds_per_token: float = 0.02,
    **settings: Any,
) -> AsyncGenerator[Behind, None]:
    engine = FakeEngine(seconds_per_token=seconds_per_token)
    runtime = make_runtime(engines={"ref": engine}, store="none", **{"hosts": [NAME], **settings})
    config = uvicorn.Config(
        create_app(runtime),
        port=0,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
        **http_options(runtime.settings.limits),
    )
    async with listening(config) as (server, port), nginx_before(port, folder, changes) as own:
        while not runtime.ready:  # noqa: ASYNC110  (a few turns)
            await asyncio.sleep(0.01)
        url, headers = f"http://127.0.0.1:{own}", {"host": NAME}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
            yield Behind(own, server, engine, client)


async def true_of(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110  (nginx's doing)
            await asyncio.sleep(0.01)


def head(*fields: bytes, method: bytes = b"POST /generate?mode=ref") -> bytes:
    lines = [method + b" HTTP/1.1", b"host: vbon.example", b"content-type: application/json"]
    return b"\r\n".join([*lines, *fields]) + b"\r\n\r\n"


async def test_requests_share_a_connection_to_the_service(tmp_path: Path) -> None:
    async with behind_nginx(tmp_path) as behind:
        for _ in range(4):  # a new connection to nginx each
            answer = await behind.client.post(
                "/generate?mode=ref", json=BODY, headers={"connection": "close"}
            )
            assert answer.status_code == 200
        assert len(behind.server.server_state.connections) == 1
    assert (
        LimitSettings().keep_alive_s > 60
    )  # nginx's own limit for idle ones, which is to be the first


async def test_bodies_arrive_however_they_are_framed(tmp_path: Path) -> None:
    last = head(b"connection: close", method=b"GET /healthz")
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(JSON), JSON)
    async with behind_nginx(tmp_path) as behind:
        framed = (head(b"content-length: %d" % len(JSON)), JSON)
        expecting = (head(b"content-length: %d" % len(JSON), b"expect: 100-continue"), JSON)
        in_chunks = (head(b"transfer-encoding: chunked"), chunks)
        assert await behind.statuses(*framed, *expecting, *in_chunks, last) == ["200"] * 4
    (unbuffered := tmp_path / "unbuffered").mkdir()
    changes = {"proxy_pass http://vbon;": "proxy_pass http://vbon; proxy_request_buffering off;"}
    async with behind_nginx(unbuffered, changes) as behind:
        assert await behind.statuses(*framed, *expecting, *in_chunks, last) == ["200"] * 4


@pytest.mark.parametrize("forwarded", [False, True])
async def test_a_body_behind_an_upgrade_is_a_body(forwarded: bool, tmp_path: Path) -> None:
    """Also where nginx is told to pass the upgrade on, as everybody's configuration for websockets does."""
    passing = 'proxy_set_header Connection "upgrade"; proxy_set_header Upgrade $http_upgrade;'
    changes = {'proxy_set_header Connection "";': passing} if forwarded else {}
    upgrade = (b"connection: upgrade", b"upgrade: h2c")
    last = head(b"connection: close", method=b"GET /healthz")
    async with behind_nginx(tmp_path, changes) as behind:
        plain = head(*upgrade, b"content-length: %d" % len(JSON))
        hidden = head(*upgrade, b"content-length: %d" % len(HIDDEN))
        assert await behind.statuses(plain, JSON, last) == ["200", "200"]
        assert await behind.statuses(hidden, HIDDEN, last) == ["422", "200"]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_stream_comes_as_it_is_decoded(version: str, tmp_path: Path) -> None:
    """By HTTP/1.0 too, which nginx speaks to the service where its configuration says nothing."""
    changes = {} if version == "1.1" else {"proxy_http_version 1.1;": ""}
    async with behind_nginx(tmp_path, changes, seconds_per_token=0.1) as behind:
        whole = await behind.client.post("/generate?mode=ref", json=BODY | {"stream": True})
        lines = whole.text.splitlines()
        assert all(line.partition(":")[0] in ("event", "data", "") for line in lines)
        assert lines.count("event: answer") == 1
        # All of it fits into the buffer that nginx would otherwise fill before it passes anything on.
        long = BODY | {"max_tokens": 40, "stream": True}
        async with behind.client.stream("POST", "/generate?mode=ref", json=long) as told:
            await anext(told.aiter_raw())
            assert behind.engine.running == 1  # four seconds from its end
        await true_of(lambda: behind.engine.running == 0)
        assert behind.engine.aborted == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_its_request(stream: bool, tmp_path: Path) -> None:
    async with behind_nginx(tmp_path) as behind:
        body = json.dumps(ENDLESS | {"stream": stream}).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", behind.port)
        writer.write(head(b"content-length: %d" % len(body)) + body)
        await true_of(lambda: behind.engine.running > 0)
        writer.close()
        await true_of(lambda: behind.engine.running == 0)
        assert behind.engine.aborted == 1


@pytest.mark.parametrize("buffering", ["on", "off"])
async def test_a_body_over_the_limit_has_the_service_s_answer(
    buffering: str, tmp_path: Path
) -> None:
    """Where nginx is told to pass such bodies on; otherwise it answers by itself."""
    passing = f"client_max_body_size 0; proxy_request_buffering {buffering};"
    async with behind_nginx(tmp_path, {"client_max_body_size 1m;": passing}) as behind:

        def upload(chunked: bool) -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", behind.port, timeout=20)
            try:
                body = iter([b"x" * 1000] * 4000) if chunked else b"x" * 4_000_000
                connection.request(
                    "POST", "/generate", body, {"host": NAME}, encode_chunked=chunked
                )
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read())["error"]["type"]
            finally:
                connection.close()

        told = await asyncio.gather(*(asyncio.to_thread(upload, i % 2 == 1) for i in range(6)))
        assert told == [(413, "body_too_large")] * 6
        # The connection that was closed is not used again.
        assert (await behind.client.post("/generate?mode=ref", json=BODY)).status_code == 200


async def test_without_keys_only_known_names_are_served(tmp_path: Path) -> None:
    forged = {"x-forwarded-host": NAME, "x-forwarded-for": "127.0.0.1", "forwarded": f"host={NAME}"}
    async with behind_nginx(tmp_path) as behind:
        ask = behind.client.get
        assert (await ask("/modes")).status_code == 200
        assert (await ask("/modes", headers=forged | {"host": "evil.example"})).status_code == 403
        same = {"origin": f"https://{NAME}:8443", "host": f"{NAME}:8443"}
        other = {"origin": "https://evil.example", "host": NAME}
        # The requests are invalid: 422 tells that they came past the guard of the page's own POSTs.
        for headers, status in ((same, 422), (other, 403)):
            told = await behind.client.post("/loadtests", json={"n": [0]}, headers=headers)
            assert told.status_code == status


async def test_no_client_s_word_about_its_address_changes_anything(tmp_path: Path) -> None:
    odd = ["127.0.0.1", "[::1]:99999999999999", "a, b:c:d, [", "1.2.3.4:x", "\xff"]
    async with behind_nginx(tmp_path) as behind:
        for value in odd:
            headers = {b"x-forwarded-for": value.encode("latin-1"), b"x-forwarded-proto": b"foo"}
            told = await behind.client.get("/modes", headers=headers)
            assert told.status_code == 200
