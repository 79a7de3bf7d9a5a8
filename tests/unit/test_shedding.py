"""Load shedding: requests that a full service rejects unparsed, and that admission would reject too."""

from __future__ import annotations

import asyncio
import random
from contextlib import AbstractAsyncContextManager, suppress
from urllib.parse import urlsplit

import pytest

from service.admission.admission import Admission
from service.admission.asks import Entry
from service.context.caller import Caller, current_caller
from service.runtime.runtime import Runtime
from tests.unit.fakes import make_runtime, on_a_port, serving
from tests.unit.test_http_protocol import say
from tests.unit.virtual_clock import virtually
from vbon.engine.fake import FakeEngine
from vbon.errors import OverloadedError

clocked = virtually("service", "vbon", "tests.unit")

BODY = {"prompt": "a", "n": 2, "max_tokens": 60, "ignore_eos": True}


def busy(waiting: int = 2) -> Runtime:
    engine = FakeEngine("fake-ref", seconds_per_token=0.02)
    limits = {"running_sequences": 2, "waiting_sequences": waiting}
    return make_runtime(engines={"ref": engine}, limits=limits)


async def fill(runtime: Runtime, post: object) -> list[asyncio.Task[object]]:
    asked = []
    while not runtime.admission.full:
        asked.append(asyncio.create_task(post("/generate?mode=ref", json=BODY | {"n": 1})))  # type: ignore[operator]
        await asyncio.sleep(0.01)
    return asked


@pytest.mark.parametrize("waiting", [0, 2])
@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("/generate?mode=bon", "bon"),
        ("/generate?mode=nonsense", "unknown"),
        ("/generate", "ref"),
        ("/compare", "unknown"),
        ("/v1/completions", "unknown"),
        ("/v1/chat/completions", "unknown"),
        ("/v1/score", "unknown"),
    ],
)
@clocked
async def test_a_full_service_refuses_without_reading(path: str, mode: str, waiting: int) -> None:
    runtime = busy(waiting)
    mode = runtime.settings.default_mode if path == "/generate" else mode
    async with serving(runtime) as (_, client):
        asked = await fill(runtime, client.post)
        answer = await client.post(
            path, content=b"{not json at all", headers={"x-request-id": "me"}
        )
        seen = (await client.get("/metrics")).text
        assert (await client.get("/modes")).status_code == 200
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        again = await client.post(path, content=b"{not json at all")
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["request_id"]) == (429, "overloaded", "me")
    assert int(answer.headers["retry-after"]) >= 1
    assert f"2 sequences run and {waiting} wait" in error["message"]
    assert f'vbon:request_errors_total{{error="overloaded",mode="{mode}"}} 1.0' in seen
    assert again.status_code == 422


@clocked
async def test_the_connection_stays_for_the_next_try() -> None:
    runtime = busy()
    async with on_a_port(runtime, timeout_graceful_shutdown=1) as url:
        port = urlsplit(url).port or 0
        head = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        body = b'{"prompt": "a", "max_tokens": 60, "ignore_eos": true, "n": 1}'
        asks = [
            asyncio.create_task(say(port, head + b"content-length: %d\r\n\r\n" % len(body) + body))
            for _ in range(4)
        ]
        while not runtime.admission.full:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        last = head + b"connection: close\r\ncontent-length: 2\r\n\r\n{}"
        _, told = await say(port, head + b"content-length: 2\r\n\r\n{}" + last)
        for ask in asks:
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
    assert told.count('"overloaded"') == 2


@pytest.mark.parametrize("seed", range(20))
@clocked
async def test_whatever_is_asked_of_a_full_one_would_be_refused(seed: int) -> None:
    chance = random.Random(seed)
    admission = Admission(running=8, waiting=chance.choice((0, 1, 5)), running_tokens=400)
    callers = [Caller(name) for name in ("", "a", "b", "c")]

    def asking() -> AbstractAsyncContextManager[Entry]:
        current_caller.set(chance.choice(callers))
        sequences, priority = chance.choice((1, 1, 2, 4, 16)), chance.choice((0, 1))
        return admission.enter(sequences, priority, max_tokens=chance.choice((1, 20, 90)))

    async def hold() -> None:
        with suppress(OverloadedError):
            async with asking():
                await asyncio.sleep(chance.random() * 0.01)

    held, times_full = [], 0
    for _ in range(300):
        if admission.full:
            times_full += 1
            with pytest.raises(OverloadedError):
                async with asking():
                    pass
        held.append(asyncio.create_task(hold()))
        await asyncio.sleep(chance.random() * 0.001)
    await asyncio.gather(*held)
    assert times_full
