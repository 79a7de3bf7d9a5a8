"""A network partition between a front end and its reward models: packets vanish, nothing is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from asgi_lifespan import LifespanManager

from service.app import create_app
from service.runtime.batching_scorer import BatchingScorer
from service.runtime.runtime import Runtime
from service.settings import ServiceSettings
from service.wire import WireServer
from service.wire.hosted import SCORER, HostedScorer, ScorerState
from service.wire.replicas import Address, FixedReplicas
from service.wire.scorer import WireScorer
from tests.namespaces import TIMING, Apart, why_not
from tests.unit.fakes import FakeReward
from vbon.engine.fake import FakeEngine

BODY = {"prompt": "x", "n": 4, "max_tokens": 8}
# Above the silence after which a partition is noticed, and below what a hanging request would take.
PATIENCE_S = 15


@pytest.fixture
def apart() -> Iterator[Apart]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Apart.made() as found:
        yield found


@asynccontextmanager
async def service(
    addresses: dict[str, Address],
) -> AsyncGenerator[tuple[Runtime, httpx.AsyncClient], None]:
    replicas = FixedReplicas[ScorerState]("the reward model", SCORER, addresses, timing=TIMING)
    engines = {name: FakeEngine(name, seconds_per_token=0.002) for name in ("ref", "vbon")}
    runtime = Runtime(
        ServiceSettings(reward="fake"), dict(engines), WireScorer(replicas, "fake", 20), None
    )
    app = create_app(runtime)
    async with LifespanManager(app):
        async with asyncio.timeout(20):
            while not runtime.ready:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield runtime, client


class Load:
    """Requests one after another, several at a time, and how they ended."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self.sent = 0
        self.statuses: Counter[int] = Counter()

    def send(self, mode: str = "bon") -> None:
        self.sent += 1
        self._tasks.add(asyncio.create_task(self._one(mode)))

    async def _one(self, mode: str) -> None:
        async with asyncio.timeout(PATIENCE_S):  # nobody waits for ever
            answer = await self._client.post(f"/generate?mode={mode}", json=BODY)
        assert answer.text
        self.statuses[answer.status_code] += 1

    async def over(self, seconds: float) -> None:
        """Send a request of each mode every 20 ms for so long."""
        until_s = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until_s:
            self.send()
            self.send("vbon")
            await asyncio.sleep(0.02)

    async def all_ended(self) -> Counter[int]:
        await asyncio.gather(*self._tasks)
        assert self.statuses.total() == self.sent
        return self.statuses


async def healed(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("direction", ["both", "to", "back"])
async def test_a_partition_from_the_only_reward_model(apart: Apart, direction: str) -> None:
    with apart.reward() as address:
        async with service({"far": address}) as (runtime, client):
            load = Load(client)
            await load.over(0.2)
            assert set(await load.all_ended()) == {200}
            apart.cut(to=direction != "back", back=direction != "to")
            await load.over(2.5)
            ended = await load.all_ended()
            assert set(ended) == {200, 503}, ended
            # Noticed: now it is refused at once, and single samples are answered without their rewards.
            assert (await client.post("/generate?mode=bon", json=BODY)).status_code == 503
            single = await client.post("/generate?mode=vbon", json=BODY)
            assert (single.status_code, single.json()["reward"]) == (200, None)
            apart.heal()
            await healed(client)
            load = Load(client)
            await load.over(0.2)
            assert set(await load.all_ended()) == {200}
            assert runtime.reward is not None
            assert (runtime.reward.waiting, runtime.admission.own_running) == (0, 0)


async def test_a_partition_from_one_of_two_reward_models_costs_no_answer(apart: Apart) -> None:
    scorer = BatchingScorer(FakeReward())
    await scorer.start()
    near = WireServer("tcp://127.0.0.1:*", HostedScorer(lambda: scorer), SCORER, timing=TIMING)
    await near.start()
    with apart.reward() as address:
        addresses = {"far": address, "near": Address(near.address, near.secret)}
        async with service(addresses) as (_, client):
            load = Load(client)
            await load.over(0.2)
            apart.cut()
            await load.over(2.0)
            assert set(await load.all_ended()) == {200}
            apart.heal()
            load = Load(client)
            await load.over(0.2)
            assert set(await load.all_ended()) == {200}
    await near.stop()
    await scorer.stop()
