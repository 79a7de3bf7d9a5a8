"""Checkpoints that come while the service runs, over real vLLM: whole models and adapters."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm")

from asgi_lifespan import LifespanManager

from service.app import create_app
from service.auth.keys import write_keys
from service.runtime.build import RuntimeBuilder, build_runtime
from service.settings import ServiceSettings
from tests.tiny import SMALL_CACHE
from tests.unit.rolling import ROOT_KEY, bearer, decision
from vbon.errors import CheckpointError
from vbon.storage.checkpoints import write_checksums

pytestmark = [pytest.mark.vllm, pytest.mark.train, pytest.mark.usefixtures("forked_engines")]

GREEDY: dict[str, Any] = {"prompt": "the film was", "max_tokens": 12, "temperature": 0}


@pytest.fixture
async def client(sandbox: Path, tmp_path: Path) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A service with engines of its own, because its reference's must have room for adapters."""
    write_keys(tmp_path / "keys.jsonl", [ROOT_KEY[0]])
    distil: Any = {"dir": str(tmp_path / "kept"), "policy": "live", "lora_rank": 12, "n": 4}
    settings = ServiceSettings(
        policies={"ref": str(sandbox / "policy")},
        reward=str(sandbox / "reward"),
        store=str(tmp_path / "runs.db"),
        auth={"keys_file": str(tmp_path / "keys.jsonl")},  # type: ignore[arg-type]
        distil={**distil, "shadow_share": 1e-9},
        engine={"enforce_eager": True, "args": SMALL_CACHE},  # type: ignore[arg-type]
    )
    runtime = build_runtime(settings)
    app = create_app(runtime, rebuild=RuntimeBuilder(settings))
    async with LifespanManager(app, startup_timeout=300, shutdown_timeout=60):
        async with asyncio.timeout(300):
            while not runtime.ready:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            client.headers.update(bearer(ROOT_KEY))
            # The state of the rollout is read from the store beside the engines' start.
            async with asyncio.timeout(60):
                while (await client.get("/distil/checkpoints")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            yield client


async def answer(client: httpx.AsyncClient, mode: str = "auto") -> dict[str, Any]:
    response = await client.post("/generate", params={"mode": mode}, json=GREEDY)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def submit(client: httpx.AsyncClient, kept: Path, name: str, source: Path) -> str:
    """Submit a copy of a checkpoint, wait until it is loaded, and make it live; return its revision."""
    directory = kept / "rounds" / name / "checkpoint"
    shutil.copytree(source, directory)
    is_adapter = (directory / "adapter_config.json").exists()
    write_checksums(directory, "adapter" if is_adapter else "causal-lm")
    path = f"rounds/{name}/checkpoint"
    response = await client.post("/distil/checkpoints", json={"path": path, "decision": decision()})
    assert response.status_code == 200, response.text
    async with asyncio.timeout(300):
        while True:
            found = (await client.get(f"/distil/checkpoints/{name}")).json()
            assert found["status"] == "rolling", found
            if found["served"]:
                break
            await asyncio.sleep(0.05)
    while found["status"] == "rolling":
        seen = {"status": "rolling", "step": found["step"]}
        found = (await client.post(f"/distil/checkpoints/{name}/promote", json=seen)).json()
    assert found["status"] == "live"
    return str(found["revision"])


async def test_whole_models_and_adapters_take_over_and_leave(
    client: httpx.AsyncClient, vbon_checkpoint: Path, lora_checkpoint: Path, tmp_path: Path
) -> None:
    kept, reference = tmp_path / "kept", await answer(client, "ref")
    asking = True

    async def ask() -> list[str]:
        """Ask until told to stop; every request must be answered."""
        found = []
        while asking:
            found.append((await answer(client))["routing"]["checkpoint"])
        return found

    users = asyncio.create_task(ask())
    try:
        revisions, texts = {}, {}
        for name, source in (
            ("0001", lora_checkpoint / "adapter"),
            ("0002", vbon_checkpoint),
            ("0003", lora_checkpoint / "adapter"),
        ):
            revisions[name] = await submit(client, kept, name, source)
            found = await answer(client)
            assert found["routing"]["checkpoint"] == name
            assert found["policy"]["revision"] == revisions[name]
            texts[name] = found["text"]
        assert revisions["0001"] == revisions["0003"] != revisions["0002"]
        assert texts["0001"] == texts["0003"]
        assert texts["0001"] not in (texts["0002"], reference["text"])
        back = await client.post("/distil/rollback", json={"to": "0002"})
        assert back.json()["live"] == "0002"
        async with asyncio.timeout(300):
            while (await answer(client))["routing"]["checkpoint"] != "0002":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await answer(client, "live"))["text"] == texts["0002"]
        await client.post("/distil/rollback", json={"to": None})
        found = await answer(client)
        assert (found["routing"]["arm"], found["sampling"]["n"]) == ("bon", 4)
    finally:
        asking = False
        arms = set(await users)
    assert arms == {None, "0001", "0002", "0003"}


async def test_an_adapter_without_room_is_refused_before_the_engine_sees_it(
    sandbox: Path, lora_checkpoint: Path
) -> None:
    distil: Any = {"dir": "x", "policy": "live"}
    settings = ServiceSettings(policies={"ref": str(sandbox / "policy")}, distil=distil)
    builder = RuntimeBuilder(settings)
    serving = builder.engines("ref", {})
    builder.place("live", str(lora_checkpoint / "adapter"))
    with pytest.raises(CheckpointError, match=r"without room for one.*--distil\.lora-rank"):
        builder.engines("live", serving)
