"""The page behind a proxy that serves it below a path and does not forward its host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import uvicorn
from playwright.async_api import expect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.app import create_app
from service.bench.processes import free_port
from tests.browser.visits import Visitor
from tests.unit.fakes import make_runtime
from tests.unit.listening import listening

PREFIX = "/tools/vbon"


def below_a_path(app: ASGIApp) -> ASGIApp:
    """A proxy: strips the prefix, and asks for a host of its own."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not scope["path"].startswith(f"{PREFIX}/"):
                await PlainTextResponse("elsewhere", 404)(scope, receive, send)
                return
            path = scope["path"].removeprefix(PREFIX)
            headers = [(k, v) for k, v in scope["headers"] if k != b"host"]
            scope = {**scope, "path": path, "raw_path": path.encode(),
                     "headers": [*headers, (b"host", b"backend:8000")]}  # fmt: skip
        await app(scope, receive, send)

    return proxy


@asynccontextmanager
async def proxied() -> AsyncGenerator[str, None]:
    port = free_port()
    origins = [f"http://127.0.0.1:{port}"]
    runtime = make_runtime(store="none", cors_origins=origins, hosts=["backend"])
    config = uvicorn.Config(
        below_a_path(create_app(runtime)), port=port, log_config=None, access_log=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    async with listening(config):
        while not runtime.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{port}{PREFIX}"


async def test_the_page_and_its_requests_stay_below_the_path(visitor: Visitor) -> None:
    async with proxied() as url:
        page = await visitor.open(f"{url}/#play")
        await expect(page.locator("#readiness")).to_have_text("ready")
        for view in ("Runs", "Explore", "Play"):
            await page.get_by_role("link", name=view).click()
            await expect(page).to_have_title(f"{view} · vbon")
        # Each in the page's own words: a chart's library, a stream, and a POST that other sites may not send.
        script = """async () => {
            const api = await import(new URL("page/api.js", location.href));
            const charts = await import(new URL("page/charts.js", location.href));
            const events = [];
            const asked = { prompt: "a", n: 2, max_tokens: 3, stream: true };
            for await (const { event } of api.stream("/generate?mode=bon", asked)) events.push(event);
            const sides = [{ mode: "ref" }, { mode: "bon", n: 2 }];
            const pair = await api.post("/preferences/pairs", { prompt: "a", sides, max_tokens: 3 });
            return [events.at(-1), typeof pair.left, api.located("/loadtests/1/report"), typeof charts.plot];
        }"""
        assert await page.evaluate(script) == [
            "answer", "string", f"{url}/loadtests/1/report", "function",
        ]  # fmt: skip


async def test_the_api_is_tried_below_the_path(visitor: Visitor) -> None:
    async with proxied() as url:
        page = await visitor.open(f"{url}/docs")
        operation = page.locator("#operations-server-get_healthz_healthz_get")
        await operation.locator("button").first.click()
        await operation.get_by_role("button", name="Try it out").click()
        await operation.get_by_role("button", name="Execute").click()
        await expect(operation.locator(".live-responses-table")).to_contain_text("alive")
