"""The real application around fakes: engine, reward and gold reward without weights."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import httpx
from asgi_lifespan import LifespanManager
from fastapi import FastAPI

from bestofn.engine.fake import FakeEngine
from bestofn.rewards import Scorable
from service.app import create_app
from service.runtime import Runtime
from service.scoring import BatchingScorer
from service.settings import ServiceSettings


class FakeReward:
    """Praise minus blame, with a little of the length so that ties are rare."""

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
async def serving(runtime: Runtime) -> AsyncGenerator[tuple[FastAPI, httpx.AsyncClient], None]:
    """The started application and a client of it."""
    app = create_app(runtime)
    async with LifespanManager(app):
        while not runtime.ready and runtime.failure is None:  # noqa: ASYNC110  (a few turns)
            await asyncio.sleep(0)
        for scorer in filter(None, (runtime.reward, runtime.gold)):
            scorer._model.batches.clear()  # type: ignore[attr-defined]  # the warm-up's
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield app, client
