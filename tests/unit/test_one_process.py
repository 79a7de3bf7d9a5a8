"""Routes that a server of several processes refuses, and settings that it cannot have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from pydantic import ValidationError

from service.app import _routes
from service.http.one_process import ROUTES, OneProcessMiddleware
from service.settings import ServiceSettings


async def _beneath(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"beneath"})


def _served() -> Iterator[tuple[str, str]]:
    for route in _routes():
        if isinstance(route, APIRoute):
            for method in route.methods:
                yield method, route.path.replace("{run_id}", "x").replace("{secret}", "x")


async def test_each_refused_route_exists_and_all_others_are_served() -> None:
    app = OneProcessMiddleware(_beneath, workers=3)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    refused = []
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for method, path in _served():
            answer = await client.request(method, path)
            if answer.status_code == 299:
                continue
            assert answer.status_code == 501
            message = answer.json()["error"]["message"]
            assert "has 3 processes" in message
            assert "--workers 1" in message
            refused.append((method, path))
    assert len(set(refused)) == len(ROUTES)
    assert ("POST", "/admin/reload") in refused


@pytest.mark.parametrize(
    "settings",
    [
        {"expected": ["vbon"]},
        {"distil": {"dir": "x"}},
        {"distil": {"dir": "x", "policy": "live"}},
        {"store": ":memory:"},
        {"store": "sqlite://"},
        {"store": "sqlite:///:memory:"},
        {"store": "sqlite+pysqlite:///:memory:?cache=shared"},
        {"store": "sqlite:///file:x?mode=memory&uri=true"},
    ],
)
def test_settings_of_one_process_are_refused_at_the_start(settings: dict[str, object]) -> None:
    ServiceSettings(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="needs a server of one process"):
        ServiceSettings(workers=2, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "store", ["x.db", "sqlite:///x.db", "sqlite:////tmp/x.db", "postgresql+psycopg://u@h/d", None]
)
def test_workers_may_have_any_store_that_they_share(store: str | None) -> None:
    assert ServiceSettings(workers=2, store=store).store == store


def test_the_front_ends_of_a_fleet_are_its_replicas() -> None:
    from service.fleet.settings import FleetSettings

    with pytest.raises(ValidationError, match=r"service\.workers is 2.*front_ends\.replicas"):
        FleetSettings(service={"workers": 2})
