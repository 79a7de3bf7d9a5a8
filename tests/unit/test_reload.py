"""``POST /admin/reload``: a served model is replaced without interrupting any request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.auth.keys import new_key, write_keys
from service.runtime.batching_scorer import BatchingScorer
from service.runtime.reload import Reloader
from service.runtime.runtime import Runtime
from tests.unit.fakes import FakeReward, make_runtime
from tests.unit.fakes import serving as started
from tests.unit.virtual_clock import virtually
from vbon.engine import Engine
from vbon.engine.fake import FakeEngine
from vbon.errors import BusyError, CheckpointError, InvalidInputError, NotReadyError

clocked = virtually("service", "vbon", "tests.unit")

BODY = {"prompt": "p", "n": 4, "max_tokens": 8}


class Unwell(FakeEngine):
    async def start(self) -> None:
        raise CheckpointError("model.safetensors is truncated")


class Remote(FakeEngine):
    """Fails to decode once it has been stopped, as a remote engine does."""

    asked = 0

    async def decode(self, prompt_token_ids: list[int], token_ids: list[int]) -> str:
        self.asked += 1
        await asyncio.sleep(0.01)
        if not self.alive:
            raise NotReadyError("the engine has not started")
        return await super().decode(prompt_token_ids, token_ids)


class Shelf:
    """A :class:`service.runtime.reload.ModelBuilder` that returns the models it was given."""

    def __init__(self) -> None:
        self.next: dict[str, Engine] = {}
        self.error: Exception | None = None

    def place(self, policy: str, path: str | None) -> None:
        raise NotImplementedError

    def engines(self, policy: str, serving: Mapping[str, Engine]) -> dict[str, Engine]:
        if self.error is not None:
            raise self.error
        return dict(self.next)

    def scorer(self, name: str) -> BatchingScorer:
        model = FakeReward()
        model.revision = "second"  # type: ignore[misc]
        return BatchingScorer(model)


class Service:
    """The application, and a client with an admin key."""

    def __init__(self, runtime: Runtime, shelf: Shelf, client: httpx.AsyncClient) -> None:
        self.runtime, self.shelf, self.client = runtime, shelf, client

    async def reload(self, model: str) -> httpx.Response:
        return await self.client.post("/admin/reload", json={"model": model})

    async def ask(self, mode: str = "vbon") -> httpx.Response:
        return await self.client.post("/generate", params={"mode": mode}, json=BODY)


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncGenerator[Service, None]:
    """The started service."""
    file = tmp_path / "keys.jsonl"
    key, token = new_key("root", "admin")
    write_keys(file, [key])
    runtime = make_runtime(
        engines={
            "ref": FakeEngine("ref", seconds_per_token=0.002),
            "vbon": FakeEngine("first", seconds_per_token=0.1, endless=True),
        },
        auth={"keys_file": str(file)},
    )
    shelf = Shelf()
    async with started(runtime, rebuild=shelf) as (_, client):
        client.headers["authorization"] = f"Bearer {token}"
        yield Service(runtime, shelf, client)


@clocked
async def test_requests_under_way_finish_with_the_old_and_later_ones_get_the_new(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as service:
        old = service.runtime.policies["vbon"]
        new = FakeEngine("second", seconds_per_token=0.001)
        service.shelf.next = {"vbon": new}
        before = [asyncio.create_task(service.ask()) for _ in range(4)]
        await asyncio.sleep(0.02)
        reloading = asyncio.create_task(service.reload("vbon"))
        while service.runtime.policies["vbon"] is not new:  # noqa: ASYNC110
            await asyncio.sleep(0)
        later = await service.ask()
        assert old.alive  # somebody still uses it
        answers = await asyncio.gather(*before)
        answer = await reloading
        assert answer.json() == {
            "models": ["vbon"],
            "before": "fake",
            "now": "fake",
            "load_s": answer.json()["load_s"],
            "drain_s": answer.json()["drain_s"],
            "in_place": False,
        }
        assert [a.json()["policy"]["path"] for a in answers] == ["first"] * 4
        assert later.json()["policy"]["path"] == "second"
        assert not old.alive
        assert service.runtime.ready


@pytest.mark.parametrize(
    "changes",
    [{}, {"stream": True}, {"prompt": ["p", "q"]}, {"model": "bon@vbon", "stream": True}],
    ids=["whole", "stream", "batch", "reranked stream"],
)
@clocked
async def test_an_engine_is_in_use_until_the_texts_of_the_tokens_are_known(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    async with serving(tmp_path) as service:
        old, new = Remote("first"), Remote("second")
        await old.start()
        await service.runtime.adopt_engines({"vbon": old})
        service.shelf.next = {"vbon": new}
        body = {"model": "vbon", "prompt": "p", "max_tokens": 8, "ignore_eos": True, "logprobs": 0}
        asking = asyncio.create_task(service.client.post("/v1/completions", json=body | changes))
        while old.asked == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert (await service.reload("vbon")).status_code == 200
        answer = await asking
        assert (answer.status_code, '"error"' in answer.text) == (200, False)
        assert (new.asked, old.alive) == (0, False)


@pytest.mark.parametrize("early", [True, False])
@clocked
async def test_a_bad_checkpoint_is_refused_and_the_old_one_goes_on(
    tmp_path: Path, early: bool
) -> None:
    async with serving(tmp_path) as service:
        if early:
            service.shelf.error = CheckpointError("vbon has no config.json")
        else:
            service.shelf.next = {"vbon": Unwell("second")}
        refused = await service.reload("vbon")
        assert refused.status_code == 422
        assert refused.json()["error"]["type"] == "reload_refused"
        assert ("config.json" if early else "truncated") in refused.json()["error"]["message"]
        assert (await service.ask()).json()["policy"]["path"] == "first"
        assert service.runtime.ready


@clocked
async def test_what_goes_with_a_policy_is_replaced_with_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        service.shelf.next = {"ref": FakeEngine("ref2"), "vbon": FakeEngine("vbon2")}
        assert (await service.reload("ref")).json()["models"] == ["ref", "vbon"]
        assert (await service.ask("vbon")).json()["policy"]["path"] == "vbon2"


@clocked
async def test_a_reward_model_is_replaced_between_requests_not_within_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        under_way = asyncio.create_task(service.ask("bon"))
        await asyncio.sleep(0.005)
        old = service.runtime.reward
        answer = await service.reload("reward")
        assert (answer.json()["before"], answer.json()["now"]) == ("fake", "second")
        assert (await under_way).status_code == 200
        assert old is not None
        assert old._model.closed  # type: ignore[attr-defined]
        assert (await service.ask("bon")).json()["reward_model"]["revision"] == "second"


@clocked
async def test_one_at_a_time_and_only_what_there_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        unknown = await service.reload("nothing")
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (422, "model")
        assert "ref, vbon, reward" in unknown.json()["error"]["message"]
        service.shelf.next = {"vbon": FakeEngine("second")}
        users = [asyncio.create_task(service.ask()) for _ in range(2)]
        await asyncio.sleep(0.01)
        first = asyncio.create_task(service.reload("vbon"))
        await asyncio.sleep(0.01)
        second = await service.reload("reward")
        assert (second.status_code, second.json()["error"]["type"]) == (409, "busy")
        assert (await first).status_code == 200
        await asyncio.gather(*users)


@clocked
async def test_a_caller_that_leaves_lets_no_other_reload_in_before_its_own_has_ended(
    tmp_path: Path,
) -> None:
    """As the connection of a worker that dies, for which the parent reloads."""
    async with serving(tmp_path) as service:
        new = FakeEngine("second")
        service.shelf.next = {"vbon": new}
        user = asyncio.create_task(service.ask())
        await asyncio.sleep(0.01)
        reloader = Reloader(service.runtime, service.shelf)
        left = asyncio.create_task(reloader.reload("vbon"))
        await asyncio.sleep(0.01)
        assert service.runtime.policies["vbon"] is new  # the old one is still used
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        with pytest.raises(BusyError):
            await reloader.reload("reward")
        await user
        await asyncio.sleep(0.01)
        assert (await reloader.reload("reward")).models == ("reward",)


@clocked
async def test_a_reload_before_the_models_are_loaded_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        loading = make_runtime()
        reloader = Reloader(loading, service.shelf)
        for model in ("vbon", "reward"):
            with pytest.raises(NotReadyError, match="models are loading"):
                await reloader.reload(model)
            with pytest.raises(InvalidInputError):
                await reloader.reload("nothing")


@clocked
async def test_the_new_one_is_watched_and_the_old_no_longer(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        new = FakeEngine("second")
        service.shelf.next = {"vbon": new}
        await service.reload("vbon")
        await new.stop()
        async with asyncio.timeout(60):
            while not service.runtime.ready:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert new.alive
        text = (await service.client.get("/metrics")).text
        assert 'vbon:restarts_total{part="vbon"} 1.0' in text


@clocked
async def test_a_server_that_cannot_reload_tells_what_to_do_in_a_fleet(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    key, token = new_key("root", "admin")
    write_keys(file, [key])
    async with started(make_runtime(auth={"keys_file": str(file)})) as (_, client):
        headers = {"authorization": f"Bearer {token}"}
        refused = await client.post("/admin/reload", json={"model": "vbon"}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["type"]) == (404, "not_found")
        assert "deploy it again" in refused.json()["error"]["message"]


@clocked
async def test_a_path_cannot_be_named(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        body = {"model": "vbon", "path": "/etc"}
        refused = await service.client.post("/admin/reload", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "path")


@pytest.mark.parametrize(
    "error", [RecursionError("too deep"), KeyError("x"), OSError(5, "I/O error")]
)
@pytest.mark.parametrize("model", ["vbon", "reward"])
async def test_whatever_loading_raises_the_old_model_stays(
    tmp_path: Path, error: Exception, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    async with serving(tmp_path) as service:
        monkeypatch.setattr(service.shelf, "engines", fail)
        monkeypatch.setattr(service.shelf, "scorer", fail)
        refused = await service.reload(model)
        answered = await service.client.post("/generate?mode=bon", json=BODY | {"max_tokens": 2})
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "reload_refused")
    assert type(error).__name__ in refused.json()["error"]["message"]
    assert answered.status_code == 200
