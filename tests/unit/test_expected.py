"""Policies whose checkpoints come later: the service starts without them and serves them once they exist."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from asgi_lifespan import LifespanManager
from pydantic import ValidationError

from service.app import create_app
from service.runtime import expected
from service.runtime.batching_scorer import BatchingScorer
from service.runtime.build import missing_expected
from service.runtime.runtime import Runtime
from service.settings import ServiceSettings
from tests.unit.fakes import make_runtime
from vbon.engine import Engine
from vbon.engine.fake import FakeEngine
from vbon.errors import CheckpointError

BODY = {"prompt": "p", "n": 2, "max_tokens": 4}


class Builder:
    """Builds the engine of a checkpoint, or fails as often as told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.built = failures, list[FakeEngine]()

    def place(self, policy: str, path: str | None) -> None:
        raise NotImplementedError

    def engines(self, policy: str, serving: Mapping[str, Engine]) -> dict[str, Engine]:
        if self.failures:
            self.failures -= 1
            raise CheckpointError("model.safetensors is truncated")
        self.built.append(FakeEngine(policy))
        return {policy: self.built[-1]}

    def scorer(self, name: str) -> BatchingScorer:
        raise NotImplementedError


@asynccontextmanager
async def serving(runtime: Runtime, builder: Builder) -> AsyncGenerator[httpx.AsyncClient]:
    app = create_app(runtime, rebuild=builder)
    async with LifespanManager(app):
        while not runtime.ready:  # noqa: ASYNC110
            await asyncio.sleep(0)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def test_a_policy_joins_when_its_checkpoint_appears_and_is_supervised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expected, "POLL_S", 0.001)
    path = tmp_path / "vbon"
    runtime, builder = make_runtime(engines={"ref": FakeEngine("ref")}, store="none"), Builder()
    runtime.expected = {"vbon": str(path)}
    async with serving(runtime, builder) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert "vbon" not in {m["name"] for m in (await client.get("/modes")).json()["modes"]}
        refused = await client.post("/generate", params={"mode": "vbon"}, json=BODY)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "not_ready")
        assert str(path) in refused.json()["error"]["message"]
        over = await client.post("/generate", params={"mode": "bon", "policy": "vbon"}, json=BODY)
        assert over.status_code == 503
        path.mkdir()
        while runtime.expected:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        answered = await client.post("/generate", params={"mode": "vbon"}, json=BODY)
        assert answered.status_code == 200
        over = await client.post("/generate", params={"mode": "bon", "policy": "vbon"}, json=BODY)
        assert over.status_code == 200
        assert "vbon" in {m["name"] for m in (await client.get("/modes")).json()["modes"]}
        metrics = (await client.get("/metrics")).text
        assert 'vbon:engine_alive{policy="vbon"} 1.0' in metrics
        assert 'vbon:restarts_total{part="vbon"} 0.0' in metrics
        await builder.built[0].stop()  # as if its process had died
        while runtime.supervisor.supervised["vbon"].restarts == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (
            await client.post("/generate", params={"mode": "vbon"}, json=BODY)
        ).status_code == 200


async def test_a_checkpoint_that_cannot_be_loaded_is_tried_again_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(expected, "POLL_S", 0.001)
    monkeypatch.setattr(expected, "PAUSE_S", 0.001)
    runtime, builder = make_runtime(engines={"ref": FakeEngine("ref")}, store="none"), Builder(2)
    runtime.expected = {"vbon": str(tmp_path)}
    async with serving(runtime, builder) as client:
        while runtime.expected:
            assert (await client.post("/generate", params={"mode": "bon"}, json=BODY)).is_success
        assert (await client.post("/generate", params={"mode": "vbon"}, json=BODY)).is_success
    assert caplog.text.count("the expected policy vbon cannot be loaded: model.safetensors") == 2


def test_only_checkpoints_that_are_missing_are_waited_for(tmp_path: Path) -> None:
    there, later = tmp_path / "there", tmp_path / "later"
    there.mkdir()
    settings = ServiceSettings(
        policies={"ref": "x", "there": str(there), "later": str(later)}, expected=["there", "later"]
    )
    assert missing_expected(settings) == {"later": str(later)}


@pytest.mark.parametrize(
    ("policies", "words"),
    [
        ({"ref": "x"}, "must be one of policies"),
        ({"ref": "x", "vbon": "http://host/v1"}, "is a URL"),
    ],
)
def test_what_cannot_be_expected_is_refused(policies: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ServiceSettings(policies=policies, expected=["vbon"])
