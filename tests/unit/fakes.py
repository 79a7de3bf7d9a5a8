"""Fake engines and reward models without weights, and the real application around them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import httpx
import uvicorn
from asgi_lifespan import LifespanManager
from fastapi import FastAPI
from starlette.types import Message

from service.app import create_app
from service.http.uvicorn_protocol import http_options
from service.runtime.batching_scorer import BatchingScorer
from service.runtime.reload import ModelBuilder
from service.runtime.runtime import Runtime
from service.settings import ServiceSettings
from tests.unit.listening import listening
from vbon.engine.fake import FakeEngine
from vbon.errors import CheckpointError
from vbon.prompts import Prompt
from vbon.rewards import Scorable


class FakeReward:
    """Scores praise minus blame, plus a little for length so that ties are rare."""

    name, revision = "fake-reward", "fake"

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.closed = False
        self._seconds = seconds

    def load(self) -> None:
        pass

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        self.batches.append(len(items))
        self.threads.add(threading.get_ident())
        time.sleep(self._seconds)
        return [score_text(item.completion) for item in items]

    def close(self) -> None:
        self.closed = True


def score_text(text: str) -> float:
    words = text.split()
    good = sum(word in {"good", "superb", "warm", "sharp"} for word in words)
    return good - 0.5 * (len(words) - good) + len(text) / 1000


def make_runtime(
    *,
    reward: FakeReward | None = None,
    gold: FakeReward | None = None,
    without_reward: bool = False,
    engines: dict[str, FakeEngine] | None = None,
    **settings: object,
) -> Runtime:
    policies = engines or {"ref": FakeEngine("fake-ref"), "vbon": FakeEngine("fake-vbon")}
    scorer = None if without_reward else BatchingScorer(reward or FakeReward())
    return Runtime(
        ServiceSettings(**settings),  # type: ignore[arg-type]
        dict(policies),
        scorer,
        BatchingScorer(gold) if gold is not None else None,
    )


@asynccontextmanager
async def serving(
    runtime: Runtime, **options: Any
) -> AsyncGenerator[tuple[FastAPI, httpx.AsyncClient], None]:
    """The started application, and a client for it."""
    app = create_app(runtime, **options)
    async with LifespanManager(app):
        while not runtime.ready and runtime.failure is None:  # noqa: ASYNC110  (a few turns)
            await asyncio.sleep(0)
        for scorer in filter(None, (runtime.reward, runtime.gold)):
            scorer._model.batches.clear()  # type: ignore[attr-defined]  # the warm-up's
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield app, client


@asynccontextmanager
async def on_a_port(
    runtime: Runtime,
    *,
    started: bool = False,
    ready: bool = True,
    early: bool = False,
    rebuild: ModelBuilder | None = None,
    **options: Any,
) -> AsyncGenerator[str, None]:
    """The OpenAI URL of a real server in this process. A started runtime stays started.

    Waits until the server is ready, or with ``ready=False`` only until it listens. With ``early``, requests
    are refused before the application is asked, as in a service of its own.
    """
    lifespan = "off" if started else "on"
    app = create_app(runtime, rebuild=rebuild)
    if early:
        options |= http_options(runtime.settings.limits, None, app.state.early_refusal)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan=lifespan,
        **{"port": 0, **options},
    )
    async with listening(config) as (_, port):
        while ready and not runtime.ready:  # noqa: ASYNC110  (a few turns)
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{port}/v1"


@asynccontextmanager
async def served(runtime: Runtime) -> AsyncGenerator[str, None]:
    """The address of a real server in this process, which is ready."""
    async with on_a_port(runtime, timeout_graceful_shutdown=5) as url:
        yield url.removesuffix("/v1")


class ChatEngine(FakeEngine):
    """A fake engine with a chat template."""

    async def encode(self, prompt: Prompt) -> list[int]:
        return [ord(character) for character in prompt.key]


class Irreplaceable(FakeEngine):
    """An engine that cannot be started again once ``decoded_tokens`` is set."""

    async def start(self) -> None:
        if self.decoded_tokens:
            raise CheckpointError("gone")
        await super().start()


@dataclass
class Streamed:
    """A response as it arrived: each piece with its time."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, str]] = field(default_factory=list)
    ended: bool = False

    @property
    def text(self) -> str:
        return "".join(piece for _, piece in self.pieces)

    @property
    def events(self) -> list[tuple[str, Any]]:
        """The events as (name, data), in order; the name is empty if an event has none."""
        found = []
        for block in filter(None, self.text.split("\n\n")):
            lines = dict(line.split(": ", 1) for line in block.split("\n") if line[0] != ":")
            if "data" in lines:
                data = lines["data"]
                name = lines.get("event", "")
                found.append((name, data if data == "[DONE]" else json.loads(data)))
        return found

    def named(self, name: str) -> list[Any]:
        return [data for one, data in self.events if one == name]

    @property
    def comments(self) -> list[str]:
        return [line[2:] for line in self.text.split("\n") if line.startswith(": ")]


async def stream(
    app: FastAPI,
    path: str,
    body: dict[str, Any],
    leave: Callable[[Streamed], bool] = lambda _: False,
    stall_after: int | None = None,
) -> Streamed:
    """Post to the app as a server does; the client disconnects once ``leave`` returns true.

    Args:
        stall_after: number of pieces after which the client stops reading but stays connected.
    """
    seen = Streamed()
    changed = asyncio.Event()
    inbox = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> Message:
        if inbox:
            return inbox.pop()
        while not leave(seen):
            changed.clear()
            with suppress(TimeoutError):  # what makes a client leave need not be a message
                async with asyncio.timeout(0.005):
                    await changed.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            seen.status = message["status"]
            seen.headers = {key.decode(): value.decode() for key, value in message["headers"]}
        else:
            if message["body"]:
                seen.pieces.append((perf_counter(), message["body"].decode()))
            seen.ended = not message.get("more_body", False)
        changed.set()
        if len(seen.pieces) == stall_after:
            await asyncio.Event().wait()

    route, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": "POST",
        "path": route,
        "query_string": query.encode(),
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "asgi": {"version": "3.0"},
        "server": ("test", 80),
        "client": ("test", 1),
        "root_path": "",
    }
    await app(scope, receive, send)
    return seen
