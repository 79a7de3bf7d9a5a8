"""``POST /admin/reload`` with ``in_place``: the weights of a running engine change below its requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.auth.keys import new_key, write_keys
from service.runtime.in_flight import InFlightRequests
from service.runtime.runtime import Runtime
from tests.unit.fakes import make_runtime
from tests.unit.fakes import serving as started
from tests.unit.test_checkpoints import write_model, write_safetensors
from tests.unit.test_reload import Shelf
from tests.unit.virtual_clock import virtually
from vbon.engine.fake import FakeEngine
from vbon.errors import CheckpointError, EngineDeadError, RequestTimeoutError
from vbon.storage.checkpoints import check_checkpoint, write_checksums
from vbon.storage.weights_alone import NewWeights

clocked = virtually("service", "vbon", "tests.unit")

BODY = {"prompt": "p", "n": 2, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
NEW = b"\1" * 16


class Spoilt(FakeEngine):
    """Cannot load what its check has accepted, or dies of it."""

    error: Exception = CheckpointError("vLLM cannot load the weights")

    async def _load(self, new: NewWeights) -> None:
        await asyncio.sleep(0.01)
        if isinstance(self.error, EngineDeadError):
            await self.stop()
        raise self.error


class Service:
    """The application, a client, and the directory of the policy `vbon`."""

    def __init__(self, runtime: Runtime, client: httpx.AsyncClient, model: Path) -> None:
        self.runtime, self.client, self.model = runtime, client, model
        self.shelf = Shelf()

    @property
    def revision(self) -> str:
        return self.runtime.policies["vbon"].info.revision

    async def reload(self, model: str = "vbon", **changes: Any) -> httpx.Response:
        body = {"model": model, "in_place": True} | changes
        return await self.client.post("/admin/reload", json=body)

    async def ask(self, mode: str = "vbon") -> dict[str, Any]:
        response = await self.client.post("/generate", params={"mode": mode}, json=BODY)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


@asynccontextmanager
async def serving(
    tmp_path: Path, engine: type[FakeEngine] = FakeEngine, **options: Any
) -> AsyncGenerator[Service, None]:
    model = tmp_path / "vbon"
    model.mkdir()
    write_model(model)
    vbon = engine(str(model), **{"seconds_per_token": 0.01, **options})
    key, token = new_key("root", "admin")
    write_keys(tmp_path / "keys.jsonl", [key])
    runtime = make_runtime(
        engines={"ref": FakeEngine("ref"), "vbon": vbon},
        auth={"keys_file": str(tmp_path / "keys.jsonl")},
    )
    shelf = Shelf()
    async with started(runtime, rebuild=shelf) as (_, client):
        client.headers["authorization"] = f"Bearer {token}"
        service = Service(runtime, client, model)
        service.shelf = shelf
        yield service


def put_new(model: Path, payload: bytes = NEW) -> str:
    """Overwrite the weights; the revision of what the directory holds then."""
    write_safetensors(model / "model.safetensors", payload)
    return check_checkpoint(str(model), "causal-lm").revision


@clocked
async def test_every_answer_is_of_the_revision_that_it_names_and_none_fails(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        engine, old = service.runtime.policies["vbon"], service.revision
        texts = {old: (await service.ask())["text"]}
        answers: list[dict[str, Any]] = []
        done = asyncio.Event()

        async def keep_asking() -> None:
            while not done.is_set():
                answers.append(await service.ask())

        users = [asyncio.create_task(keep_asking()) for _ in range(6)]
        await asyncio.sleep(0.3)
        new = put_new(service.model)
        changed = await service.reload()
        await asyncio.sleep(0.3)
        done.set()
        await asyncio.gather(*users)
        texts[new] = (await service.ask())["text"]
        told = changed.json()
        assert (told["before"], told["now"], told["in_place"]) == (old, new, True)
        assert service.runtime.policies["vbon"] is engine
        assert len(set(texts.values())) == 2
        revisions = [answer["policy"]["revision"] for answer in answers]
        assert revisions == sorted(revisions, key=[old, new].index)  # it changes once
        assert set(revisions) == {old, new}
        assert all(answer["text"] == texts[answer["policy"]["revision"]] for answer in answers)
        assert not any("earlier_revisions" in answer["policy"] for answer in answers)


@clocked
async def test_those_in_flight_finish_first_and_new_ones_wait(tmp_path: Path) -> None:
    async with serving(tmp_path, endless=True, seconds_per_token=0.1) as service:
        old = service.revision
        before = asyncio.create_task(service.ask())
        await asyncio.sleep(0.05)
        new = put_new(service.model)
        reloading = asyncio.create_task(service.reload())
        await asyncio.sleep(0.2)
        after = asyncio.create_task(service.ask())
        elsewhere = await service.ask("ref")  # other policies are not held up
        await asyncio.sleep(0.05)
        assert not before.done()
        assert service.runtime.policies["vbon"].unfinished == 1  # the new one is not there yet
        assert elsewhere["policy"]["name"] == "ref"
        assert (await reloading).status_code == 200
        assert (await before)["policy"]["revision"] == old
        assert (await after)["policy"]["revision"] == new


@clocked
async def test_kept_requests_say_which_revisions_their_tokens_may_be_of(tmp_path: Path) -> None:
    async with serving(tmp_path, endless=True, seconds_per_token=0.1) as service:
        revisions = [service.revision]
        kept = asyncio.create_task(service.ask())
        openai = {"model": "vbon", "prompt": "p", "max_tokens": 12, "ignore_eos": True}
        whole = asyncio.create_task(service.client.post("/v1/completions", json=openai))
        streamed = asyncio.create_task(
            service.client.post("/v1/completions", json={**openai, "stream": True})
        )
        for payload in (NEW, b"\2" * 16):
            await asyncio.sleep(0.15)
            revisions.append(put_new(service.model, payload))
            assert (await service.reload(in_flight="keep")).status_code == 200
        policy = (await kept)["policy"]
        assert [*policy["earlier_revisions"], policy["revision"]] == revisions
        assert (await whole).json()["system_fingerprint"] == "+".join(revisions)
        chunks = [
            json.loads(line[6:])
            for line in (await streamed).text.splitlines()
            if line.startswith("data: {")
        ]
        told = list(dict.fromkeys(chunk["system_fingerprint"] for chunk in chunks))
        assert told == [revisions[0], "+".join(revisions)]
        assert "earlier_revisions" not in (await service.ask())["policy"]


@pytest.mark.parametrize("logprobs", [0, None])
@clocked
async def test_a_request_that_uses_its_engine_twice_is_not_held_in_between(
    tmp_path: Path, logprobs: int | None
) -> None:
    async with serving(tmp_path, seconds_per_token=0.1) as service:
        body = {"model": "vbon", "prompt": "p", "max_tokens": 8, "logprobs": logprobs, "n": 2}
        asking = asyncio.create_task(service.client.post("/v1/completions", json=body))
        await asyncio.sleep(0)
        put_new(service.model)
        assert (await service.reload(limit_s=5)).status_code == 200
        assert (await asking).status_code == 200


@clocked
async def test_those_that_take_too_long_keep_the_old_weights(tmp_path: Path) -> None:
    async with serving(tmp_path, endless=True, seconds_per_token=1.0) as service:
        old, text = service.revision, (await service.ask())["text"]
        slow = asyncio.create_task(service.ask())
        await asyncio.sleep(0.5)
        put_new(service.model)
        refused = await service.reload(limit_s=2)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "not_ready")
        assert "within 2 s" in refused.json()["error"]["message"]
        for answer in (await slow, await service.ask()):
            assert (answer["policy"]["revision"], answer["text"]) == (old, text)


@clocked
async def test_what_cannot_be_loaded_leaves_the_old_weights(tmp_path: Path) -> None:
    async with serving(tmp_path, Spoilt) as service:
        before = await service.ask()
        put_new(service.model)
        refused = await service.reload()
        assert (refused.status_code, refused.json()["error"]["type"]) == (422, "reload_refused")
        assert "the weights served before stay in use" in refused.json()["error"]["message"]
        after = await service.ask()
        assert (after["text"], after["policy"]) == (before["text"], before["policy"])


@clocked
async def test_an_engine_that_could_not_be_saved_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spoilt, "error", EngineDeadError("could not put its old weights back"))
    async with serving(tmp_path, Spoilt) as service:
        new = put_new(service.model)
        refused = await service.reload()
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "engine_dead")
        while not service.runtime.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert (await service.ask())["policy"]["revision"] == new


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"architectures": ["LlamaForCausalLM"], "rope_theta": 7}'),
        ("tokenizer.json", '{"model": {}}'),
        ("chat_template.jinja", "{{ messages }}"),
        ("generation_config.json", '{"eos_token_id": 5}'),
    ],
)
@clocked
async def test_a_version_that_differs_in_more_is_refused_before_anything_is_touched(
    tmp_path: Path, name: str, content: str
) -> None:
    async with serving(tmp_path) as service:
        old = service.revision
        put_new(service.model)
        (service.model / name).write_text(content)
        refused = await service.reload()
        assert (refused.status_code, refused.json()["error"]["type"]) == (422, "reload_refused")
        assert name in refused.json()["error"]["message"]
        assert "reload it without in_place" in refused.json()["error"]["message"]
        assert (await service.ask())["policy"]["revision"] == old


@clocked
async def test_checksums_are_verified_first(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        old = service.revision
        put_new(service.model)
        write_checksums(service.model, "causal-lm")
        write_safetensors(service.model / "model.safetensors", b"\3" * 16)
        refused = await service.reload()
        assert refused.status_code == 422
        assert "checksum" in refused.json()["error"]["message"]
        assert (await service.ask())["policy"]["revision"] == old


@clocked
async def test_only_policies_with_files_are_changed_in_place(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        reward = await service.reload("reward")
        assert (reward.status_code, reward.json()["error"]["param"]) == (422, "in_place")
        ref = await service.reload("ref")
        assert (ref.status_code, ref.json()["error"]["type"]) == (422, "reload_refused")
        wrong = await service.reload(in_flight="abort")
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "in_flight")


@clocked
async def test_an_adapter_is_replaced_within_its_engine_as_without_in_place(tmp_path: Path) -> None:
    async with serving(tmp_path, adapter=True) as service:
        new = FakeEngine("second", adapter=True)
        service.shelf.next = {"vbon": new}
        told = (await service.reload()).json()
        assert (told["models"], told["in_place"]) == (["vbon"], False)
        assert service.runtime.policies["vbon"] is new


@clocked
async def test_a_dead_engine_is_not_changed(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        await service.runtime.policies["vbon"].stop()
        refused = await service.reload()
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "engine_dead")


@clocked
async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(tmp_path: Path) -> None:
    async with serving(tmp_path, endless=True, seconds_per_token=0.1) as service:
        before = asyncio.create_task(service.ask())
        await asyncio.sleep(0.05)
        put_new(service.model)
        reloading = asyncio.create_task(service.reload())
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(service.ask())
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await before
        assert (await reloading).status_code == 200
        assert len(service.runtime.in_flight) == 0
        assert (await service.ask())["policy"]["revision"] == service.revision


@clocked
async def test_a_part_that_a_task_uses_already_is_not_waited_for_within_it() -> None:
    requests, engine, other = InFlightRequests(), object(), object()
    order: list[str] = []

    async def change(part: object) -> None:
        async with requests.quiet(part, 10):
            order.append("changed")

    async with requests.track(5, "limit", (engine,)):
        changing = asyncio.create_task(change(engine))
        await asyncio.sleep(0.1)
        async with requests.track(5, "limit", (engine, other)):
            order.append("inner")
        assert order == ["inner"]
        with pytest.raises(RequestTimeoutError):  # another task has no such right
            await asyncio.create_task(_use(requests, engine, 0.5), context=Context())
    await changing
    assert order == ["inner", "changed"]
    await _use(requests, engine, 1)


async def _use(requests: InFlightRequests, part: object, limit_s: float) -> None:
    async with requests.track(limit_s, "limit", (part,)):
        pass
