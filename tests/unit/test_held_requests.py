"""Requests that one front end forwards to another, which holds their state."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from service.app import _routes, create_app
from service.auto.live import LiveAuto
from service.auto.table_in_use import TableState
from service.context.caller import Caller
from service.held.client import RemoteHolder
from service.held.forwarding import ForwardingMiddleware
from service.held.hosted import HELD_REQUESTS, HeldRequests
from service.held.requests import Answered, Asked
from service.held.routes import is_held
from service.store import add_preference
from service.wire import WireError, WireServer
from service.wire.replicas import Address, FixedReplicas
from tests.unit.fakes import make_runtime
from tests.unit.test_auto_by_price import exact_table

PAIR = {"prompt": "p", "sides": [{"mode": "ref"}, {"mode": "vbon"}], "max_tokens": 4}


def _served() -> Iterator[tuple[str, str]]:
    for route in _routes():
        if isinstance(route, APIRoute):
            for method in route.methods:
                yield method, route.path.replace("{run_id}", "x").replace("{secret}", "x")


def test_held_are_the_routes_whose_state_is_in_the_memory_of_one_process() -> None:
    held = {(m, p) for m, p in _served() if is_held({"method": m, "path": p})}
    assert held == {
        ("POST", "/loadtests"),
        ("GET", "/loadtests"),
        ("GET", "/loadtests/x"),
        ("PATCH", "/loadtests/x"),
        ("DELETE", "/loadtests/x"),
        ("GET", "/loadtests/x/result"),
        ("DELETE", "/loadtests/x/result"),
        ("GET", "/loadtests/x/comparison"),
        ("GET", "/loadtests/x/report"),
        ("POST", "/loadtests/x/report-link"),
        ("GET", "/page/reports/x"),
        ("POST", "/preferences"),
        ("POST", "/preferences/pairs"),
        ("PUT", "/auto/table"),
        ("DELETE", "/auto/table"),
        ("POST", "/tune/runs/x/apply"),
    }


class TwoFrontEnds:
    """A holder and another front end, connected by the wire in one process."""

    def __init__(
        self,
        held: Any,
        other: httpx.AsyncClient,
        server: WireServer,
        auto: LiveAuto,
        replicas: FixedReplicas[TableState],
    ) -> None:
        self.held, self.other, self.server, self.auto = held, other, server, auto
        self.replicas = replicas


@asynccontextmanager
async def two(
    directory: Path, *, patience_s: float = 10, **settings: Any
) -> AsyncGenerator[TwoFrontEnds, None]:
    store = f"{directory}/s.db"
    app = create_app(make_runtime(store=store, **settings))
    server = WireServer(f"ipc://{directory}/holder", HeldRequests(app), HELD_REQUESTS)
    await server.start()
    replicas = FixedReplicas[TableState](
        "the holder", HELD_REQUESTS, {"holder": Address(server.address, server.secret)}
    )
    holder = RemoteHolder(replicas, patience_s=patience_s)
    front = create_app(make_runtime(store=store, **settings), holder=holder)
    transport = httpx.ASGITransport(front)
    async with (
        app.router.lifespan_context(app),
        front.router.lifespan_context(front),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as other,
    ):
        async with asyncio.timeout(10):
            while (await other.get("/readyz")).status_code != 200 or not replicas.ready():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield TwoFrontEnds(app, other, server, front.state.auto, replicas)
    await server.stop()


async def test_a_pair_and_its_verdict_pass_through_another_front_end(tmp_path: Path) -> None:
    async with two(tmp_path) as service:
        shown = await service.other.post(
            "/preferences/pairs", json=PAIR, headers={"x-request-id": "mine"}
        )
        assert shown.status_code == 200, shown.text
        assert shown.headers["x-request-id"] == "mine"
        assert shown.headers.get_list("x-content-type-options") == ["nosniff"]
        verdict = {"pair": shown.json()["pair"], "winner": "left"}
        kept = await service.other.post("/preferences", json=verdict)
        assert kept.status_code == 200, kept.text
        again = await service.other.post("/preferences", json=verdict)
        assert (again.status_code, again.json()["error"]["type"]) == (404, "not_found")
        wrong = await service.other.post("/preferences/pairs", json={**PAIR, "sides": [1]})
        assert wrong.status_code == 422
        # The verdict is in the store, which all read.
        assert len((await service.other.get("/preferences")).json()["standings"]) == 1


async def test_a_client_that_leaves_while_its_verdict_is_stored_cannot_give_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with one process, where only routes that look for the client's end are cut short."""
    storing, go_on = threading.Event(), threading.Event()

    def slow(store: Any, verdict: Any) -> int:
        storing.set()
        assert go_on.wait(10)
        return add_preference(store, verdict)

    monkeypatch.setattr("service.routes.preferences.add_preference", slow)
    async with two(tmp_path) as service:
        shown = await service.other.post("/preferences/pairs", json=PAIR)
        verdict = {"pair": shown.json()["pair"], "winner": "left"}
        leaving = asyncio.create_task(service.other.post("/preferences", json=verdict))
        assert await asyncio.to_thread(storing.wait, 10)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.sleep(0.05)  # the holder learns of it
        go_on.set()
        again = await service.other.post("/preferences", json=verdict)
        assert (again.status_code, again.json()["error"]["type"]) == (404, "not_found")
        async with asyncio.timeout(10):
            while not (await service.other.get("/preferences")).json()["standings"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        [standing] = (await service.other.get("/preferences")).json()["standings"]
        assert standing["wins"] + standing["losses"] == 1


async def test_a_client_that_leaves_ends_the_pair_that_is_drawn_for_it(tmp_path: Path) -> None:
    async with two(tmp_path) as service:
        runtime = service.held.state.runtime
        runtime.policies["ref"]._seconds_per_token = 10.0
        leaving = asyncio.create_task(service.other.post("/preferences/pairs", json=PAIR))
        async with asyncio.timeout(10):
            while not runtime.admission.running:  # noqa: ASYNC110  (another process's)
                await asyncio.sleep(0.01)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            while runtime.admission.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_without_a_holder_the_answer_is_503_and_others_go_on(tmp_path: Path) -> None:
    async with two(tmp_path, patience_s=0.05) as service:
        await service.server.stop()
        answer = await service.other.post("/preferences/pairs", json=PAIR)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) >= 1
        other = await service.other.post("/generate?mode=ref", json={"prompt": "p"})
        assert other.status_code == 200


async def test_a_request_waits_for_the_connection_to_a_holder_that_is_started_again(
    tmp_path: Path,
) -> None:
    async with two(tmp_path) as service:
        service.replicas.set({})
        asked = asyncio.create_task(service.other.post("/preferences/pairs", json=PAIR))
        await asyncio.sleep(0.05)
        assert not asked.done()
        service.replicas.set({"again": Address(service.server.address, service.server.secret)})
        assert (await asked).status_code == 200


async def test_a_holder_that_is_about_to_end_is_told_with_what_to_do(tmp_path: Path) -> None:
    async with two(tmp_path) as service:
        service.server._leaving = True  # before the other front end has heard of it
        answer = await service.other.post("/preferences/pairs", json=PAIR)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "not_ready")
        assert "ask again in some seconds" in answer.json()["error"]["message"]


async def test_other_front_ends_use_the_holder_s_table(tmp_path: Path) -> None:
    async with two(tmp_path) as service:
        table = service.held.state.auto.table

        async def seen(expected: Any) -> None:
            async with asyncio.timeout(10):
                while service.auto.table.table != expected:  # noqa: ASYNC110  (another process's)
                    await asyncio.sleep(0.01)

        put = exact_table()
        await table._change(lambda _: None, lambda: table._adopt(put))
        await seen(put)
        assert service.auto.table.source == "request"
        await table._change(lambda _: None, lambda: table._adopt(None))
        await seen(None)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/metrics"), ("POST", "/generate"), ("POST", "/admin/reload")]
)
async def test_the_holder_serves_nothing_else(method: str, path: str) -> None:
    hosted = HeldRequests(create_app(make_runtime()))
    asked = Asked(method, path, b"", [], b"", "http", None, "r", Caller("", is_admin=True))
    with pytest.raises(WireError, match="is not forwarded"):
        await hosted.ask(asked)


async def test_a_client_that_leaves_cancels_the_holder_s_work() -> None:
    cancelled, begun = asyncio.Event(), asyncio.Event()

    class Slow:
        async def ask(self, _: Asked) -> Answered:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            raise AssertionError

    messages = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        if len(messages) == 1:
            await begun.wait()
        return messages.pop(0)

    app = ForwardingMiddleware(None, holder=Slow())  # type: ignore[arg-type]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/loadtests",
        "query_string": b"",
        "headers": [],
    }
    with pytest.raises(Exception, match="disconnected"):
        await app(scope, receive, None)  # type: ignore[arg-type]
    assert cancelled.is_set()
