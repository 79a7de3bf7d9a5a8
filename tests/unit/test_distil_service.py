"""What a service collects for training, and what it must not: the real application with the fake engine."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.auth.keys import new_key, write_keys
from service.distil.collector import Collector
from service.settings import DistilSettings, ServiceSettings
from service.strategies import STRATEGIES
from service.strategies.bon import Bon
from tests.unit.collected import everything, kept
from tests.unit.fakes import ChatEngine, FakeReward, make_runtime, serving
from tests.unit.test_loadtest_service import PROMPTS, measure
from vbon.distil import directory as directory_module
from vbon.distil.open_shard import OpenShard
from vbon.engine import Candidate
from vbon.engine.fake import FakeEngine
from vbon.errors import ExportError, InvalidInputError
from vbon.storage.checkpoints import Checkpoint

BODY: dict[str, Any] = {"prompt": "the film was", "n": 6, "max_tokens": 12, "seed": 3}
SHOWN = {"return_candidates": True, "logprobs": True}
ROOT_KEY, ANN_KEY, BOB_KEY = (new_key(*args) for args in (("root", "admin"), ("ann",), ("bob",)))


def bearer(key: tuple[Any, str]) -> dict[str, str]:
    return {"authorization": f"Bearer {key[1]}"}


@asynccontextmanager
async def collecting(
    tmp_path: Path, *, engines: Any = None, reward: Any = None, **distil: Any
) -> AsyncGenerator[tuple[Any, httpx.AsyncClient], None]:
    """A service that collects into ``tmp_path / "kept"``; the client has an admin's key."""
    keys = tmp_path / "keys.jsonl"
    write_keys(keys, [key for key, _ in (ROOT_KEY, ANN_KEY, BOB_KEY)])
    runtime = make_runtime(
        engines=engines,
        reward=reward,
        auth={"keys_file": str(keys)},
        distil={"dir": str(tmp_path / "kept"), **distil},
    )
    async with serving(runtime) as (app, client):
        client.headers.update(bearer(ROOT_KEY))
        yield app, client


async def status(client: httpx.AsyncClient) -> dict[str, Any]:
    """What the server says it has collected, after all that waits is written and sealed."""
    answered = await client.post("/distil/seal")
    assert answered.status_code == 200, answered.text
    found: dict[str, Any] = answered.json()
    return found


@pytest.mark.parametrize("mode", ["ref", *STRATEGIES.built_in])
async def test_every_candidate_of_the_reference_is_kept_as_it_was(
    tmp_path: Path, mode: str
) -> None:
    """The oracle is the answer, which shows every candidate, and the definition of each mode."""
    own = {"adaptive-bon": {"min_n": 2, "candidate_cost": 1.0}}.get(mode, {})
    async with collecting(tmp_path) as (_, client):
        shown = SHOWN if mode != "treebon" else {}
        answered = await client.post(f"/generate?mode={mode}", json={**BODY, **shown, **own})
        assert answered.status_code == 200, answered.text
        answer = answered.json()
        found = await status(client)
    answers = kept(tmp_path / "kept")
    # Partial answers that were chosen and continued; candidates that were not scored.
    if mode in {"treebon", "self-certainty"}:
        assert answers == []
        assert found["dropped"] == {}
        return
    (one,) = answers
    candidates = [c for c in answer["candidates"] if c["reward"] is not None]
    assert one.prompt == "the film was"
    assert list(one.rewards) == [c["reward"] for c in candidates]
    assert list(one.responses) == [c["text"] for c in candidates]
    assert one.response_ids is not None
    assert [list(ids) for ids in one.response_ids] == [c["token_ids"] for c in candidates]
    assert list(one.finish_reasons) == [c["finish_reason"] for c in candidates]
    assert list(one.indices) == [c["index"] for c in candidates]
    assert (one.mode, one.seed, one.request_id) == (mode, 3, answer["request_id"])
    few = {"ref": 1, "adaptive-bon": 2, "speculative-rejection": 0, "best-of-poisson": 1}
    fixed = few.get(mode, 6)
    assert one.independent == fixed
    assert len(one.rewards) == (1 if mode == "ref" else len(answer["candidates"]))
    (identity,) = found["identities"]
    assert (identity["policy_revision"], identity["reward_revision"]) == ("fake", "fake")
    assert (identity["max_tokens"], identity["temperature"]) == (12, 1.0)


async def test_streams_batches_and_v1_are_collected_too(tmp_path: Path) -> None:
    async with collecting(tmp_path, engines={"ref": ChatEngine()}) as (_, client):
        batch = await client.post(
            "/generate", json={"prompts": ["a", "b"], "n": 2, "max_tokens": 4}
        )
        streamed = await client.post("/generate", json={**BODY, "prompt": "c", "stream": True})
        text = {"model": "bon", "prompt": "d", "best_of": 2, "max_tokens": 4}
        completion = await client.post("/v1/completions", json=text)
        turns = [{"role": "user", "content": "e"}]
        chat = {"model": "bon", "messages": turns, "best_of": 2, "max_tokens": 4}
        chatted = await client.post("/v1/chat/completions", json=chat)
        assert {r.status_code for r in (batch, streamed, completion, chatted)} == {200}
        await status(client)
    answers = {one.prompt: one for one in kept(tmp_path / "kept")}
    assert sorted(answers) == ["a", "b", "c", "d", "user: e"]
    assert answers["user: e"].messages == tuple(turns)
    assert {answers[p].request_id for p in "ab"} == {batch.json()["request_id"]}
    assert answers["d"].messages is None


@pytest.mark.parametrize(
    ("query", "body", "reason"),
    [
        ("mode=vbon", {}, None),
        ("mode=bon&policy=vbon", {}, None),
        ("mode=ref", {"score": False}, None),
        ("mode=bon", {"store": False}, None),
        ("mode=bon", {"top_p": 0.9}, "sampling"),
        ("mode=bon", {"top_k": 3}, "sampling"),
        ("mode=bon", {"min_p": 0.1}, "sampling"),
        ("mode=bon", {"min_tokens": 2}, "sampling"),
        ("mode=bon", {"stop": ["odd"]}, "sampling"),
        ("mode=bon", {"stop_token_ids": [1]}, "sampling"),
        ("mode=bon", {"ignore_eos": True}, "sampling"),
        ("mode=bon", {"frequency_penalty": 0.5}, "sampling"),
        ("mode=bon", {"presence_penalty": 0.5}, "sampling"),
        ("mode=bon", {"repetition_penalty": 1.1}, "sampling"),
        ("mode=bon", {"logit_bias": {"1": 2.0}}, "sampling"),
        ("mode=bon", {"response_format": {"type": "json_object"}}, "sampling"),
        ("mode=bon", {"temperature": 0}, "sampling"),
        ("mode=bon", {"add_special_tokens": False}, "prompt_form"),
        ("mode=bon", {"add_special_tokens": True}, ""),
        ("mode=bon", {"temperature": 0.5}, ""),
        ("mode=bon", {"store": True}, ""),
        ("mode=bon", {"n": [2, 4]}, ""),
    ],
)
async def test_only_what_training_can_use_is_kept(
    tmp_path: Path, query: str, body: dict[str, Any], reason: str | None
) -> None:
    """``None``: not counted, because it is not of the kind; empty: kept."""
    async with collecting(tmp_path) as (_, client):
        answered = await client.post(f"/generate?{query}", json={**BODY, **body})
        assert answered.status_code == 200, answered.text
        found = await status(client)
    assert found["dropped"] == ({reason: 1} if reason else {})
    assert found["lines"] == (1 if reason == "" else 0)


async def test_tools_and_variables_of_the_template_cannot_be_expressed(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "n": 2, "max_tokens": 4}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    async with collecting(tmp_path, engines={"ref": ChatEngine()}) as (_, client):
        for more in ({"tools": [tool]}, {"chat_template_kwargs": {"x": 1}}):
            assert (await client.post("/generate", json={**chat, **more})).status_code == 200
        found = await status(client)
    assert found["dropped"] == {"prompt_form": 2}


async def test_a_plug_in_that_cannot_tell_what_its_candidates_are_is_answered_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Bon, "independent", lambda self, n: 1 / 0)
    async with collecting(tmp_path) as (_, client):
        assert (await client.post("/generate", json=BODY)).status_code == 200
        assert (await status(client))["lines"] == 0
    assert "answers of mode bon are not collected" in caplog.text


async def test_a_comparison_is_not_traffic(tmp_path: Path) -> None:
    """Its prompts are often held out, and must not be trained on."""
    async with collecting(tmp_path) as (_, client):
        body = {"prompts": ["held out"], "modes": ["ref", "bon"], "n": 2, "max_tokens": 4}
        assert (await client.post("/compare", json=body)).status_code == 200
        found = await status(client)
    assert (found["lines"], found["dropped"]) == (0, {})


@pytest.mark.parametrize("path", ["/generate?mode=bon", "/v1/completions"])
async def test_store_is_honoured_and_refused_where_nothing_is_stored(
    tmp_path: Path, path: str
) -> None:
    body: dict[str, Any] = {"prompt": "private", "max_tokens": 4}
    if path.startswith("/v1"):
        body["model"] = "bon"
    async with collecting(tmp_path) as (_, client):
        assert (await client.post(path, json={**body, "store": False})).status_code == 200
        assert (await client.post(path, json={**body, "store": True})).status_code == 200
        assert (await status(client))["lines"] == 1
    async with serving(make_runtime()) as (_, client):
        assert (await client.post(path, json={**body, "store": False})).status_code == 200
        refused = await client.post(path, json={**body, "store": True})
        assert refused.status_code == 422
        assert "this server stores no answers; leave it out" in refused.text


async def test_keys_are_hashed_and_can_be_excluded(tmp_path: Path) -> None:
    async with collecting(tmp_path, exclude_keys=["bob"]) as (_, client):
        for key in (ANN_KEY, BOB_KEY, ANN_KEY, ROOT_KEY):
            await client.post("/generate", json=BODY, headers=bearer(key))
        found = await status(client)
    assert found["dropped"] == {"key_excluded": 1}
    assert (found["keys"], found["largest_key_share"]) == (2, pytest.approx(2 / 3))
    hashes = [one.key for one in kept(tmp_path / "kept")]
    assert hashes[0] == hashes[1] != hashes[2]
    assert not {b"ann", b"bob", b"root"} & set(everything(tmp_path / "kept").split(b'"'))


async def test_one_key_cannot_fill_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "FREE_LINES", 2)
    async with collecting(tmp_path, max_key_share=0.5) as (_, client):
        for key in (ANN_KEY,) * 9 + (BOB_KEY,) * 3:
            await client.post("/generate", json=BODY, headers=bearer(key))
        found = await status(client)
    assert found["dropped"] == {"key_share": 6}
    assert found["lines"] == 6


def test_the_sampling_rate_is_a_share_of_the_answers(tmp_path: Path) -> None:
    draws = iter([0.1, 0.3, 0.29, 0.9])
    settings = DistilSettings(dir=str(tmp_path), sampling_rate=0.3)
    collector = Collector(settings, random_number=lambda: next(draws))
    runtime = make_runtime()
    runtime.collect = collector.offer

    async def ask() -> None:
        async with serving(runtime) as (_, client):
            for _ in range(4):
                await client.post("/generate", json=BODY)

    asyncio.run(ask())
    assert (collector.writer.waiting, collector.writer.dropped["not_sampled"]) == (2, 2)
    asyncio.run(collector.stop())


REDACTIONS = """
def words(record):
    assert set(record) in ({"prompt", "responses"}, {"messages", "responses"})
    return {**record, "prompt": record["prompt"].replace("secret", "***")}

def responses(record):
    return {**record, "responses": ["***"] * len(record["responses"])}

def nothing(record):
    return None

def failing(record):
    raise ValueError(record["prompt"])

def fewer(record):
    return {**record, "responses": record["responses"][1:]}

def other(record):
    return ["secret"]

constant = 3
"""


@pytest.mark.parametrize(
    ("name", "lines", "dropped"),
    [
        ("words", 1, {}),
        ("responses", 1, {}),
        ("nothing", 0, {"redacted": 1}),
        ("failing", 0, {"redaction_failed": 1}),
        ("fewer", 0, {"redaction_failed": 1}),
        ("other", 0, {"redaction_failed": 1}),
    ],
)
async def test_a_redaction_changes_or_drops_what_is_kept(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    lines: int,
    dropped: dict[str, int],
) -> None:
    file = tmp_path / "redactions.py"
    file.write_text(REDACTIONS, encoding="utf-8")
    with caplog.at_level(logging.DEBUG):
        async with collecting(tmp_path, redact=f"{file}:{name}") as (_, client):
            answered = await client.post("/generate", json={**BODY, "prompt": "a secret was"})
            assert answered.status_code == 200
            found = await status(client)
    assert (found["lines"], found["dropped"]) == (lines, dropped)
    if name != "responses":
        assert b"secret" not in everything(tmp_path / "kept")
    else:
        (one,) = kept(tmp_path / "kept")
        assert (set(one.responses), one.response_ids, one.redacted) == ({"***"}, None, True)
    assert "secret" not in caplog.text


def test_a_redaction_that_cannot_be_called_stops_the_start(tmp_path: Path) -> None:
    file, exits = tmp_path / "redactions.py", tmp_path / "exits.py"
    file.write_text(REDACTIONS, encoding="utf-8")
    exits.write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    for spec, words in (
        (f"{file}:constant", "is int, not a function"),
        (f"{file}:missing", "AttributeError"),
        ("nowhere:f", "No module named 'nowhere'"),
        (f"{exits}:f", "SystemExit"),
        ("f", "write package.module:function or ./file.py:function"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            Collector(DistilSettings(dir=str(tmp_path / "kept"), redact=spec))
    Collector(DistilSettings(dir=str(tmp_path / "kept"))).writer.directory.close()  # not locked


async def test_a_full_queue_drops_and_never_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    real = OpenShard.append

    def append(*args: Any) -> None:
        entered.set()
        assert go_on.wait(60)
        real(*args)

    monkeypatch.setattr(OpenShard, "append", append)
    try:
        async with collecting(tmp_path, queue=2) as (app, client):
            await client.post("/generate", json=BODY)
            assert await asyncio.to_thread(entered.wait, 60)
            for _ in range(5):  # two wait, three are dropped, and each is answered meanwhile
                assert (await client.post("/generate", json=BODY)).status_code == 200
            assert app.state.collector.writer.waiting == 2
            go_on.set()
            found = await status(client)
    finally:
        go_on.set()
    assert (found["lines"], found["dropped"]) == (3, {"queue_full": 3})


async def test_on_a_full_disk_answers_go_on_and_one_line_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with collecting(tmp_path) as (_, client):
        with monkeypatch.context() as patched:
            patched.setattr(OpenShard, "append", full)
            for _ in range(5):
                assert (await client.post("/generate", json=BODY)).status_code == 200
            assert (await status(client))["dropped"] == {"disk": 5}
        lines = [one.message for one in caplog.records if "No space left" in one.message]
        assert len(lines) == 1
        assert "free some space there" in lines[0]
        await client.post("/generate", json=BODY)
        assert (await status(client))["lines"] == 1


async def test_an_answer_can_be_deleted_by_the_id_it_shows(tmp_path: Path) -> None:
    async with collecting(tmp_path) as (_, client):
        native = await client.post("/generate", json={"prompts": ["one", "two"], "max_tokens": 4})
        text = {"model": "bon", "prompt": "three", "max_tokens": 4}
        completion = await client.post("/v1/completions", json=text)
        await status(client)  # these are sealed, the next is not
        own = await client.post("/generate", json=BODY, headers={"x-request-id": "mine:1"})
        assert own.json()["request_id"] == "mine:1"
        ids = {
            native.json()["request_id"]: 2,
            completion.json()["id"]: 1,
            "mine:1": 1,
            "unknown": 0,
        }
        assert completion.json()["id"].startswith("cmpl-")
        for request_id, lines in ids.items():
            deleted = await client.delete(f"/distil/requests/{request_id}")
            assert deleted.status_code == 200
            assert deleted.json() == {"request_id": request_id, "lines": lines}
        content = everything(tmp_path / "kept")
        assert not any(prompt in content for prompt in (b"one", b"two", b"three", b"the film"))
        found = await status(client)
        assert (found["lines"], found["removed"]) == (0, {"deleted": 4})
        metrics = (await client.get("/metrics")).text
        assert 'vbon_distil_removed_lines_total{reason="deleted"} 4.0' in metrics


async def test_the_routes_are_an_admin_s_and_say_if_nothing_is_collected(tmp_path: Path) -> None:
    calls = [("GET", "/distil"), ("POST", "/distil/seal"), ("DELETE", "/distil/requests/x")]
    async with collecting(tmp_path) as (_, client):
        for method, path in calls:
            assert (await client.request(method, path)).status_code == 200, path
            refused = await client.request(method, path, headers=bearer(ANN_KEY))
            assert refused.status_code == 403
            assert "admin role" in refused.text
    keys = {"keys_file": str(tmp_path / "keys.jsonl")}
    async with serving(make_runtime(auth=keys)) as (_, client):
        for method, path in calls:
            missing = await client.request(method, path, headers=bearer(ROOT_KEY))
            assert missing.status_code == 404
            assert "--distil.dir" in missing.text
    async with serving(make_runtime()) as (_, client):
        assert (await client.get("/distil")).status_code == 403


async def test_metrics_count_answers_candidates_and_shards(tmp_path: Path) -> None:
    class Partly(FakeReward):
        def score(self, items: Any) -> list[float | None]:
            return [None, *super().score(items)[1:]] if len(items) > 1 else super().score(items)

    async with collecting(tmp_path, reward=Partly()) as (_, client):
        await client.post("/generate", json=BODY)
        await client.post("/generate", json={**BODY, "top_p": 0.5})
        found = await status(client)
        lines = (await client.get("/metrics")).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("vbon_distil_"))
    (one,) = kept(tmp_path / "kept")
    assert 1 <= len(one.rewards) < 6
    assert float(values["vbon_distil_lines_total"]) == 1
    assert float(values["vbon_distil_candidates_total"]) == len(one.rewards)
    assert float(values["vbon_distil_left_out_candidates_total"]) == 6 - len(one.rewards)
    assert float(values['vbon_distil_dropped_total{reason="sampling"}']) == 1
    assert float(values['vbon_distil_dropped_total{reason="disk"}']) == 0
    assert found["bytes"] == sum(p.stat().st_size for p in (tmp_path / "kept").glob("*.jsonl"))
    assert (found["sealed_shards"], found["open_shards"], found["collected"]) == (1, 0, 1)


async def test_an_answer_decoded_over_a_change_of_weights_is_not_kept(tmp_path: Path) -> None:
    """Its candidates may be samples of two policies."""

    class Changed(FakeEngine):
        async def generate(self, *args: Any, **options: Any) -> AsyncGenerator[Candidate, None]:
            async for candidate in super().generate(*args, **options):
                yield candidate
            if args[0] == [ord(letter) for letter in "change"]:
                self.info = self.info.changed_to(Checkpoint("ref", "second"))

    engines = {"ref": Changed("ref"), "vbon": FakeEngine("vbon")}
    async with collecting(tmp_path, engines=engines) as (_, client):
        for prompt in ("before", "change", "after"):
            await client.post("/generate", json={**BODY, "prompt": prompt})
        found = await status(client)
    assert found["dropped"] == {"reloaded": 1}
    assert [one["policy_revision"] for one in found["identities"]] == ["second", "fake"]
    assert sorted(one.prompt for one in kept(tmp_path / "kept")) == ["after", "before"]


async def test_an_answer_scored_around_a_restart_of_the_reward_is_not_kept(tmp_path: Path) -> None:
    """Its rewards may be those of two models; a restarted worker loads what its path holds by then."""

    class Restarted(FakeReward):
        def score(self, items: Any) -> list[float | None]:
            if any(item.prompt.text == "restart" for item in items):
                self.revision = "another"  # type: ignore[misc]
            return super().score(items)

    async with collecting(tmp_path, reward=Restarted()) as (_, client):
        for prompt in ("before", "restart", "after"):
            await client.post("/generate", json={**BODY, "prompt": prompt})
        found = await status(client)
    assert found["dropped"] == {"reloaded": 1}
    assert [one["reward_revision"] for one in found["identities"]] == ["another", "fake"]
    assert sorted(one.prompt for one in kept(tmp_path / "kept")) == ["after", "before"]


async def test_tokens_that_a_server_did_not_tell_are_not_kept(tmp_path: Path) -> None:
    class Silent(FakeEngine):
        def _candidate(self, *args: Any) -> Candidate:
            found = super()._candidate(*args)
            return Candidate(
                found.index, found.text, (-1,) * len(found.token_ids), found.finish_reason
            )

    async with collecting(tmp_path, engines={"ref": Silent()}) as (_, client):
        await client.post("/generate", json=BODY)
        assert (await status(client))["dropped"] == {"token_ids": 1}


async def test_no_prompt_or_answer_reaches_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "canary51ab"
    with caplog.at_level(logging.DEBUG):
        async with collecting(tmp_path) as (_, client):
            await client.post("/generate", json={**BODY, "prompt": canary})
            await status(client)
            with monkeypatch.context() as patched:
                patched.setattr(
                    "service.distil.writer.collected_answer", lambda offered, key: offered.nothing
                )
                await client.post("/generate", json={**BODY, "prompt": canary})
                assert (await status(client))["dropped"] == {"failed": 1}
            await client.delete(f"/distil/requests/{canary}")
        (shard,) = (tmp_path / "kept").glob("*.jsonl")
        shard.write_bytes(shard.read_bytes()[:-30])
        async with collecting(tmp_path) as (_, client):
            await client.post("/generate", json={**BODY, "prompt": canary})
            assert (await status(client))["lines"] == 2
    assert "an answer was not collected" in caplog.text
    assert "has no valid seal" in caplog.text
    assert canary not in caplog.text.replace(f"/distil/requests/{canary}", "")
    words = next(one.responses[0] for one in kept(tmp_path / "kept"))
    assert words not in caplog.text


async def test_a_restarted_service_goes_on_and_a_stopped_one_has_sealed(tmp_path: Path) -> None:
    for _ in range(2):
        async with collecting(tmp_path) as (_, client):
            await client.post("/generate", json=BODY)
    assert len(kept(tmp_path / "kept")) == 2
    assert not list((tmp_path / "kept").glob("*.open"))


def test_a_directory_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is a file"):
        create_app(make_runtime(distil={"dir": str(tmp_path / "file")}))
    with pytest.raises(ValueError, match=r"distil\.dir needs a reward model"):
        ServiceSettings(reward=None, distil={"dir": "x"})  # type: ignore[arg-type]


async def test_without_a_directory_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with serving(make_runtime(store="none")) as (app, client):
        await client.post("/generate", json=BODY)
        assert app.state.collector is None
        assert "vbon_distil" not in (await client.get("/metrics")).text
    assert not os.listdir(tmp_path)


async def test_a_load_test_asks_not_to_be_collected(tmp_path: Path) -> None:
    """Its prompts repeat, and are not what users ask."""
    runtime = make_runtime(distil={"dir": str(tmp_path / "kept")})
    few = {"requests": 4, "warmup_s": 0, "n": [2], "modes": ["ref", "bon"], "quality_samples": 1}
    result = await measure(tmp_path / "out", runtime, PROMPTS[:3], **few)
    assert result.server.collects
    assert all(cell.requests and not cell.errors for cell in result.cells)
    assert runtime.metrics.registry.get_sample_value("vbon_distil_lines_total") == 0
    assert kept(tmp_path / "kept") == []
