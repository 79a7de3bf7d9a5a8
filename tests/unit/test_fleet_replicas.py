"""The replicas of a fleet without a cluster: their load, their end, and how front ends find them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="a fleet needs the extra fleet")

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError

from service.fleet import found, registry, replicas
from service.fleet.found import FoundReplicas
from service.fleet.replicas import PolicyReplica, RewardReplica
from service.settings import ServiceSettings
from service.wire.engine import WireEngine
from service.wire.hosted import ENGINES, SCORER
from service.wire.replicas import Address, FixedReplicas
from service.wire.scorer import WireScorer
from tests.unit.fakes import score_text
from vbon.engine import Sampling
from vbon.prompts import Prompt

DEPLOYMENT = ("app", "Policy-ref")


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (another side's state)
            await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(replicas, "keep_for_good", lambda: None)
    monkeypatch.setattr(replicas, "set_up_logs", lambda settings: None)
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr(replicas.serve, "get_replica_context", lambda: context)


async def made(kind: Any, which: str) -> Any:
    """A replica, as Serve makes it."""
    settings = ServiceSettings(policies={"ref": "fake:10"}, reward="fake")
    replica = kind.__new__(kind)
    await replica.__init__(settings, which, "tests.fleet_parts:FakeBuilder")
    return replica


async def connected(replica: Any, interface: Any) -> FixedReplicas[Any]:
    name, url, secret = await replica.wire()
    assert name == "one"
    assert url.startswith("tcp://127.0.0.1:")
    return FixedReplicas("p", interface, {name: Address(url, secret)})


async def test_sequences_over_the_wire_are_the_load_of_a_policy_and_end_before_it() -> None:
    replica = await made(PolicyReplica, "ref")
    engine = WireEngine(await connected(replica, ENGINES), "ref", "p", 20)
    await engine.start()

    async def draw() -> list[int]:
        sampling = Sampling(max_tokens=8, ignore_eos=True)
        async with aclosing(engine.generate([1], sampling, 5, "x")) as candidates:
            return [one.index async for one in candidates]

    drawing = asyncio.create_task(draw())
    await eventually(lambda: replica.record_autoscaling_stats() == {"load": 5.0})
    await replica.check_health()
    await replica.__del__()  # Serve takes it down
    assert sorted(await drawing) == [0, 1, 2, 3, 4]
    assert replica.record_autoscaling_stats() == {"load": 0.0}
    with pytest.raises(RuntimeError, match="is dead"):
        await replica.check_health()
    await eventually(lambda: not engine.alive)
    await engine.stop()


async def test_texts_over_the_wire_are_the_load_of_a_reward_model_and_end_before_it() -> None:
    replica = await made(RewardReplica, "reward")
    score_batch = replica._scorer._score_batch
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def held(batch: Any) -> Any:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
        return score_batch(batch)

    replica._scorer._score_batch = held
    scorer = WireScorer(await connected(replica, SCORER), "r", 20)
    await scorer.start()
    first = asyncio.create_task(scorer.score(Prompt(text="p"), " good"))
    await eventually(lambda: not replica._scorer._waiting and scorer._calls)
    others = [asyncio.create_task(scorer.score(Prompt(text="p"), f" bad{i}")) for i in range(7)]
    await eventually(lambda: replica.record_autoscaling_stats()["load"] == 7.0)
    ending = asyncio.create_task(replica.__del__())
    await eventually(lambda: not scorer.alive)
    gate.set()
    texts = [" good", *(f" bad{i}" for i in range(7))]
    assert await asyncio.gather(first, *others) == [score_text(text) for text in texts]
    await ending
    assert replica.record_autoscaling_stats() == {"load": 0.0}
    await scorer.stop()


# Replicas that front ends find


class Handle:
    """A handle whose broadcasts are answered by a function."""

    app_name, deployment_name = DEPLOYMENT

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked = 0
        self.hangs = False

    def broadcast(self, method: str) -> Any:
        assert method == "wire"

        async def results_async(**options: Any) -> list[Any]:
            assert options["return_exceptions"]
            self.asked += 1
            if self.hangs:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    raise RequestCancelledError from None  # as Ray does
            if not self.answers:
                raise DeploymentUnavailableError(DEPLOYMENT)  # type: ignore[arg-type]
            return self.answers

        return SimpleNamespace(results_async=results_async)


def address(name: str) -> tuple[str, str, str]:
    return name, f"ipc:///nowhere/{name}", "s"


@pytest.fixture
async def looking(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncGenerator[tuple[Handle, FoundReplicas[Any]], None]:
    monkeypatch.setattr(found, "_LOOK_S", 60.0)
    monkeypatch.setattr(found, "_MISSING_S", 0.01)
    handle = Handle()
    replicas: FoundReplicas[Any] = FoundReplicas(handle, "p", ENGINES)  # type: ignore[arg-type]
    await replicas.use()
    yield handle, replicas
    await replicas.release()
    registry.RUNNING.pop(DEPLOYMENT, None)
    assert not registry.LISTENERS.pop(DEPLOYMENT)


async def told(*names: str) -> None:
    """Tell of the replicas that run, as Serve's router does, in a thread of its own."""
    await asyncio.to_thread(registry.tell_running, DEPLOYMENT, frozenset(names))


async def test_replicas_follow_those_that_serve_runs(
    looking: tuple[Handle, FoundReplicas[Any]],
) -> None:
    handle, replicas = looking
    await eventually(lambda: handle.asked >= 3)  # it goes on asking while there are none
    handle.answers = [address("a"), address("b")]
    await told("a", "b")
    await eventually(lambda: set(replicas.names) == {"a", "b"})
    assert replicas.address_of("a") == Address("ipc:///nowhere/a", "s")
    asked = handle.asked
    handle.answers = [address("a"), address("c")]
    await told("a", "c")
    await eventually(lambda: set(replicas.names) == {"a", "c"})
    assert handle.asked == asked + 1
    handle.answers = []
    await told()
    await eventually(lambda: not replicas.names)


async def test_a_replica_that_does_not_answer_once_is_kept_and_asked_again(
    looking: tuple[Handle, FoundReplicas[Any]],
) -> None:
    handle, replicas = looking
    handle.answers = [address("a")]
    await told("a")
    await eventually(lambda: set(replicas.names) == {"a"})
    handle.answers = [RayActorError(), RayActorError()]
    await told("a", "b")
    asked = handle.asked
    await eventually(lambda: handle.asked >= asked + 3)
    assert set(replicas.names) == {"a"}
    handle.answers = [address("a"), address("b")]
    await eventually(lambda: set(replicas.names) == {"a", "b"})


async def test_a_replica_that_serve_no_longer_lists_is_not_used(
    looking: tuple[Handle, FoundReplicas[Any]],
) -> None:
    """It may still answer, while it finishes its calls."""
    handle, replicas = looking
    handle.answers = [address("a"), address("b")]
    await told("a")
    await eventually(lambda: set(replicas.names) == {"a"})


async def test_looking_ends_in_the_midst_of_a_question(
    looking: tuple[Handle, FoundReplicas[Any]],
) -> None:
    handle, replicas = looking
    handle.hangs = True
    asked = handle.asked
    await eventually(lambda: handle.asked > asked)
    async with asyncio.timeout(60):
        await replicas.close()
    await replicas.begin()
