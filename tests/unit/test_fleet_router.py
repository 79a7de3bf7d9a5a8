"""Serve's own routing with the rule of prefix affinity, over replicas that only have names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="a fleet needs the extra fleet")

from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest

from service.fleet import registry
from service.fleet.router import PolicyRouter

DEPLOYMENT = DeploymentID(name="Policy-ref", app_name="routing")
NAMES = "xyz"
CAPACITY = 8


def identity(name: str) -> Any:
    return ReplicaID(unique_id=name, deployment_id=DEPLOYMENT)


@pytest.fixture
def router() -> Iterator[Any]:
    made = PolicyRouter(
        DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
    )
    made.initialize_state(capacity=CAPACITY, placement="prefix")
    replicas = [
        SimpleNamespace(replica_id=identity(name), max_ongoing_requests=10**5) for name in NAMES
    ]
    made._replicas = {one.replica_id: one for one in replicas}
    made._replicas_list = replicas
    for one in replicas:
        made._replica_queue_len_cache.update(one.replica_id, 0)
    yield made
    del registry.ROUTERS[DEPLOYMENT.app_name, DEPLOYMENT.name]


def call(number: int, sequences: int, retry_of: str = "") -> Any:
    return PendingRequest(
        args=[[7] * 64],
        kwargs={"sequences": sequences, "affinity": True, "retry_of": retry_of},
        metadata=RequestMetadata(request_id="r", internal_request_id=f"{number}"),
    )


async def placed(router: Any, request: Any) -> str:
    chosen = await router._choose_replica_for_request(request)
    return str(chosen.replica_id.unique_id)


def load(router: Any) -> int:
    return sum(router._in_flight.values())


async def test_calls_that_come_at_once_fill_no_replica_beyond_its_capacity(router: Any) -> None:
    """Serve tells of a call that a replica has taken only after an answer of that replica."""
    names = await asyncio.gather(*(placed(router, call(i, 4)) for i in range(6)))
    assert {name: names.count(name) for name in NAMES} == dict.fromkeys(NAMES, 2)


@pytest.mark.parametrize("routed_first", [True, False])
async def test_a_load_ends_with_its_call_in_whatever_order_serve_tells(
    router: Any, routed_first: bool
) -> None:
    """A short call may have ended before Serve tells that its replica has taken it."""
    request = call(1, 4)
    name = identity(await placed(router, request))
    if routed_first:
        router.on_request_routed(request, name, None)
        assert load(router) == 4
        router.on_request_completed(name, "1")
    else:
        router.on_request_completed(name, "1")
        router.on_request_routed(request, name, None)
    assert load(router) == 0
    assert not router._sent


async def test_a_call_that_serve_sends_to_another_replica_loads_only_that_one(router: Any) -> None:
    request = call(1, 4)
    chosen = await placed(router, request)
    other = next(name for name in NAMES if name != chosen)
    router.on_request_routed(request, identity(other), None)
    assert {name: count for name, count in router._in_flight.items() if count} == {other: 4}


async def test_a_call_that_serve_places_again_loads_one_replica(router: Any) -> None:
    request = call(1, 4)
    await placed(router, request)
    router.on_request_completed(identity("x"), "1")
    await router._choose_replica_for_request(request, is_retry=True)
    assert load(router) == 4


async def test_a_caller_that_leaves_before_its_call_is_sent_leaves_no_load(router: Any) -> None:
    for steps in range(6):
        task = asyncio.create_task(placed(router, call(steps, 4)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        if task.cancelled():
            assert load(router) == 0, steps
            assert not router._sent
        else:
            router.on_request_completed(identity(task.result()), f"{steps}")


async def test_a_call_made_again_goes_to_another_replica(router: Any) -> None:
    seen = set()
    for number in range(len(NAMES)):
        request = call(number, 1, retry_of="first")
        name = await placed(router, request)
        router.on_request_routed(request, identity(name), None)
        router.on_request_completed(identity(name), f"{number}")
        seen.add(name)
    assert seen == set(NAMES)


async def test_calls_of_a_replica_that_was_forgotten_take_nothing_off_its_later_load(
    router: Any,
) -> None:
    name = await placed(router, call(1, 4))
    router._forget(name)
    router._in_flight[name] = 3
    router.on_request_completed(identity(name), "1")
    assert router._in_flight[name] == 3
