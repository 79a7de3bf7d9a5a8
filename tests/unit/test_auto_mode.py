"""Policies that come, change their name and leave while requests are in flight; mode ``auto`` without any."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.runtime.build import RuntimeBuilder
from service.runtime.runtime import Runtime
from service.settings import ServiceSettings
from tests.unit.fakes import make_runtime, serving
from vbon.engine.fake import FakeEngine
from vbon.engine.vllm.host import AdapterRoom
from vbon.engine.vllm.options import VllmOptions
from vbon.errors import CheckpointError
from vbon.storage.checkpoints import Checkpoint

BODY: dict[str, Any] = {"prompt": "the film was", "n": 4, "max_tokens": 6}


def rolling_out(tmp_path: Path, **settings: Any) -> Runtime:
    return make_runtime(
        engines={"ref": FakeEngine("ref", seconds_per_token=settings.pop("seconds_per_token", 0))},
        store=str(tmp_path / "runs.db"),
        distil={"dir": str(tmp_path / "kept"), "policy": "live", **settings.pop("distil", {})},
        **settings,
    )


async def ask(client: httpx.AsyncClient, mode: str, **body: Any) -> httpx.Response:
    return await client.post("/generate", params={"mode": mode}, json={**BODY, **body})


async def test_auto_is_best_of_n_while_there_is_no_checkpoint(tmp_path: Path) -> None:
    runtime = rolling_out(tmp_path, default_n=5, distil={"n": 3})
    async with serving(runtime) as (_, client):
        found = (await ask(client, "auto", n=None, return_candidates=True)).json()
        assert (found["mode"], len(found["candidates"])) == ("auto", 3)
        rewards = [one["reward"] for one in found["candidates"]]
        assert found["reward"] == max(rewards)
        modes = {one["name"]: one for one in (await client.get("/modes")).json()["modes"]}
        assert "live" not in modes
        assert (modes["auto"]["default_n"], modes["auto"]["policy"]["name"]) == (3, "ref")
        chosen = {"model": "auto", "prompt": "p", "max_tokens": 4, "best_of": 2}
        answer = (await client.post("/v1/completions", json=chosen)).json()
        assert (answer["vbon"]["mode"], answer["vbon"]["sampling"]["n"]) == ("auto", 2)
        models = (await client.get("/v1/models")).json()["data"]
        assert "auto" in [one["id"] for one in models]
        metrics = (await client.get("/metrics")).text
        assert 'vbon:request_success_total{mode="auto"} 2.0' in metrics


async def test_what_auto_cannot_do_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with serving(rolling_out(tmp_path)) as (_, client):
        refused = await ask(client, "auto", n=[1, 2])
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "n")
        refused = await client.post(
            "/generate", params={"mode": "auto", "policy": "ref"}, json=BODY
        )
        assert "chooses the policy itself" in refused.text
        refused = await client.post(
            "/compare", json={"prompts": ["a"], "modes": ["ref", "auto"], "max_tokens": 4}
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "modes")
        refused = await ask(client, "live")
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "not_ready")
        assert "no checkpoint is served as 'live'" in refused.text
    async with serving(make_runtime(store="none")) as (_, client):
        refused = await ask(client, "auto")
        assert refused.status_code == 422
        assert "--distil.policy" in refused.text


async def test_a_policy_changes_its_name_and_leaves_and_no_request_in_flight_notices(
    tmp_path: Path,
) -> None:
    runtime = rolling_out(tmp_path)
    async with serving(runtime) as (_, client):
        first, second = (FakeEngine(name, seconds_per_token=0.005) for name in ("one", "two"))
        for name, engine in (("live", first), ("live-next", second)):
            await engine.start()
            runtime.join(name, engine)

        async def asked(mode: str) -> list[asyncio.Task[httpx.Response]]:
            tasks = [
                asyncio.create_task(ask(client, mode, max_tokens=20, ignore_eos=True))
                for _ in range(3)
            ]
            while runtime.policies[mode].unfinished < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            return tasks

        on_first, on_second = await asked("live"), await asked("live-next")
        assert await runtime.rename("live-next", "live") is first
        assert list(runtime.policies) == ["ref", "live"]
        after = await ask(client, "live")
        assert after.json()["policy"]["path"] == "two"
        await runtime.in_flight.until_unused(first)
        await first.stop()
        assert {(await one).json()["policy"]["path"] for one in on_first} == {"one"}
        assert await runtime.leave("live") is second
        assert (await ask(client, "live")).status_code == 503
        for task in on_second:
            assert (await task).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert 'engine_alive{policy="ref"}' in metrics
        assert 'policy="live' not in metrics
        assert runtime.supervisor.supervised.keys() == {"ref", "reward"}


async def test_a_dead_checkpoint_takes_no_service_off_its_load_balancer(tmp_path: Path) -> None:
    runtime = rolling_out(tmp_path)
    async with serving(runtime) as (_, client):
        engine = FakeEngine("live")
        await engine.start()
        runtime.join("live", engine)
        await runtime.supervisor.remove("live")
        await engine.stop()
        assert (await client.get("/readyz")).status_code == 200
        assert (await ask(client, "live")).json()["error"]["type"] == "engine_dead"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"distil": {"policy": "live"}}, "distil.policy needs distil.dir"),
        ({"distil": {"policy": "live", "dir": "x"}, "store": "none"}, "needs store"),
        ({"distil": {"policy": "auto", "dir": "x"}}, "the name of a mode"),
        ({"distil": {"policy": "Live", "dir": "x"}}, "must be lower-case"),
        ({"distil": {"policy": "vbon", "dir": "x"}}, "'vbon' of policies is needed"),
        (
            {"distil": {"policy": "p", "dir": "x"}, "policies": {"ref": "r", "p-next": "d"}},
            "p-next",
        ),
        ({"distil": {"policy": "p", "dir": "x"}, "policies": {"ref": "r", "auto": "d"}}, "'auto'"),
        ({"distil": {"shares": [0.5, 0.2, 1]}}, "must grow"),
        ({"distil": {"shares": [0.5]}}, "end with 1"),
        ({"distil": {"policy": "p", "dir": "x", "n": 200}}, "over limits.max_n"),
        (
            {"distil": {"policy": "p", "dir": "x"}, "limits": {"running_sequences": 20}},
            "16 candidates of a comparison .* never have room",
        ),
    ],
)
def test_settings_that_cannot_roll_out_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ServiceSettings(**settings)


def test_an_adapter_needs_room_on_an_engine_that_runs_here(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    for rank, words in ((8, "is remote"), (None, "is remote")):
        distil: Any = {"dir": "x", "policy": "live", "lora_rank": rank}
        settings = ServiceSettings(policies={"ref": "http://host/v1"}, distil=distil)
        builder = RuntimeBuilder(settings)
        builder.place("live", str(tmp_path))
        with pytest.raises(CheckpointError, match=words):
            builder.engines("live", builder.engines("ref", {}))


@pytest.mark.parametrize(
    ("distil", "engines", "room"),
    [
        ({}, 1, None),
        ({"policy": "live", "dir": "x"}, 3, None),
        ({"policy": "live", "dir": "x", "lora_rank": 16}, 1, AdapterRoom(2, 16)),
    ],
)
def test_memory_for_checkpoints_is_counted_from_the_start(
    distil: Any, engines: int, room: AdapterRoom | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines get their share when they start, so what is left for later ones must be left from the start."""
    counted, hosts = [], []

    def share(_: ServiceSettings, num_engines: int) -> float:
        counted.append(num_engines)
        return 0.1

    def host(path: str, _: VllmOptions, adapters: Any, room: Any) -> Any:
        hosts.append((path, adapters, room))
        return SimpleNamespace(checkpoint=Checkpoint(path, "r"), options=VllmOptions(), adapters={})

    monkeypatch.setattr("service.runtime.build.gpu_share", share)
    monkeypatch.setattr("service.runtime.build.VllmHost", host)
    monkeypatch.setattr("service.runtime.build.find_spec", lambda _: True)
    builder = RuntimeBuilder(ServiceSettings(policies={"ref": "dir"}, distil=distil))
    builder.engines("ref", {})
    builder.place("live", "other")
    builder.engines("live", {})
    assert counted == [engines]
    assert hosts == [("dir", (), room), ("other", (), None)]
