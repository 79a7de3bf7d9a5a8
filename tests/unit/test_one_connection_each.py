"""Connections of cancelled requests: httpx's own pool keeps some for good."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

from tests.unit.openai_imitation import Server, imitation
from tests.unit.test_remote_engine import draw, remote, until, watch
from tests.unit.virtual_clock import virtually
from vbon.http.transport import AiohttpTransport

clocked = virtually("service", "vbon", "tests.unit")

KEEP_IDLE_S = 0.3
BODY = {
    "model": "org/policy",
    "prompt": [1, 2],
    "max_tokens": 8,
    "temperature": 1.0,
    "seed": 1,
    "logprobs": 0,
}


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[httpx.AsyncClient, AiohttpTransport, Server], None]:
    async with imitation() as server:
        connections = AiohttpTransport(server.url, keep_idle_s=KEEP_IDLE_S)
        async with httpx.AsyncClient(transport=connections, base_url=server.url) as client:
            yield client, connections, server


@clocked
async def test_a_connection_is_used_again_and_closed_once_it_idled() -> None:
    async with connected() as (client, connections, server):
        for _ in range(5):
            assert (await client.post("/completions", json=BODY)).status_code == 200
        assert (connections.open, server.connections) == (1, 1)
        await until(lambda: server.connections == 0 and connections.open == 0)
        assert (await client.post("/completions", json=BODY)).status_code == 200


@clocked
async def test_each_request_in_flight_has_its_own() -> None:
    async with connected() as (client, connections, server):
        server.seconds_per_token = 0.02
        answers = await asyncio.gather(*(client.post("/completions", json=BODY) for _ in range(12)))
        assert [answer.status_code for answer in answers] == [200] * 12
        assert connections.open == 12
        await until(lambda: server.connections == 0)


@pytest.mark.parametrize("what", ["one", "four", "stream"])
@clocked
async def test_nothing_is_left_of_requests_cancelled_at_any_moment(what: str) -> None:
    chance = random.Random(0)
    async with imitation() as server, remote(server, request_timeout_s=5.0) as engine:
        server.seconds_per_token = 0.0005
        ways = {
            "one": lambda: draw(engine, 1),
            "four": lambda: draw(engine, 4),
            "stream": lambda: watch(engine),
        }
        for turns in range(200):
            asking = asyncio.ensure_future(ways[what]())
            # After each turn of the loop while connections are made, or at any time of the 0.005 s of one.
            if turns < 100:
                for _ in range(turns):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(chance.random() * 0.006)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
        # The server sees a connection end before it has ended what was running on it.
        await until(lambda: server.connections == server.running == 0)
        assert (server.running, engine.unfinished) == (0, 0)


async def test_a_server_is_not_blamed_for_a_stall_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The timeout for connecting fires late then, while the connection is as good as made."""
    loop = asyncio.get_running_loop()
    connect, stalls = loop.create_connection, 0

    async def stall_once(*args: Any, **kwargs: Any) -> Any:
        nonlocal stalls
        if not stalls:
            stalls += 1
            time.sleep(0.3)  # noqa: ASYNC251
            await asyncio.sleep(0)
        return await connect(*args, **kwargs)

    monkeypatch.setattr(loop, "create_connection", stall_once)
    async with imitation() as server:
        connections = AiohttpTransport(server.url, keep_idle_s=KEEP_IDLE_S)
        limits = httpx.Timeout(None, connect=0.1)
        async with httpx.AsyncClient(
            transport=connections, base_url=server.url, timeout=limits
        ) as client:
            assert (await client.post("/completions", json=BODY)).status_code == 200
    assert stalls == 1


@clocked
async def test_a_server_that_does_not_accept_is_blamed_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with ExitStack() as stack:
            for _ in range(4):  # fill the backlog
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            transport = AiohttpTransport("http://127.0.0.1", keep_idle_s=KEEP_IDLE_S)
            async with httpx.AsyncClient(
                transport=transport, timeout=httpx.Timeout(None, connect=0.2)
            ) as client:
                now = asyncio.get_running_loop().time
                begun = now()
                with pytest.raises(httpx.ConnectTimeout):
                    await client.get(f"http://127.0.0.1:{address[1]}/")
                assert now() - begun >= 0.2


@clocked
async def test_an_answer_given_up_halfway_ends_at_the_server() -> None:
    async with connected() as (client, connections, server):
        server.seconds_per_token = 0.05
        async with client.stream(
            "POST", "/completions", json=BODY | {"stream": True, "max_tokens": 100}
        ) as answer:
            async for _ in answer.aiter_bytes():
                break
        await until(lambda: connections.open == 0 and server.connections == 0)
        assert server.running == 0


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({"https_proxy": "http://proxy:3128"}, "https://host/v1", "http://proxy:3128"),
        ({"https_proxy": "proxy:3128"}, "https://host/v1", "http://proxy:3128"),
        ({"https_proxy": "http://proxy:3128"}, "http://host/v1", None),
        ({"all_proxy": "http://proxy:3128", "no_proxy": "host"}, "http://host/v1", None),
        ({"all_proxy": "http://proxy:3128"}, "http://host/v1", "http://proxy:3128"),
    ],
)
@clocked
async def test_proxies_of_the_environment(
    variables: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for variant in (name, name.upper()):
            monkeypatch.delenv(variant, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert AiohttpTransport(url, keep_idle_s=1.0).proxy == proxy
