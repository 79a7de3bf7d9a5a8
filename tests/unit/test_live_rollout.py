"""Checkpoints that take the place of best-of-N while the service runs, and lose it again."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import shutil
import sqlite3
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.distil import keeper as keeper_module
from service.distil.shadows import judged_win_rate, win_rate
from service.distil.submitted import submitted
from service.distil.totals import AutoTotals
from service.runtime.runtime import Runtime
from service.store import RolloutChange, save_rollout
from service.store.async_store import AsyncStore
from tests.unit.collected import kept
from tests.unit.fakes import ChatEngine, score_text, serving, stream
from tests.unit.rolling import (
    ANN_KEY,
    BAD,
    GOOD,
    ROOT_KEY,
    Rolling,
    Speaker,
    SpeakerBuilder,
    bearer,
    decision,
    rolling,
    rolling_runtime,
    write_spoken,
)
from tests.unit.test_checkpoints import write_model, write_safetensors
from tests.unit.test_distil_service import collecting
from vbon.distil.decision import Decision
from vbon.engine import Candidate
from vbon.errors import EngineDeadError, InvalidInputError, StoreError
from vbon.storage.checkpoints import Checkpoint, write_checksums


async def test_a_good_checkpoint_takes_over_from_best_of_n(tmp_path: Path) -> None:
    async with rolling(tmp_path) as service:
        before = await service.ask()
        assert before["routing"] == {"arm": "bon", "share": 1.0, "step": None, "checkpoint": None}
        assert (before["mode"], before["sampling"]["n"]) == ("auto", 4)
        await service.submitted("0001")
        assert (await service.checkpoint("0001"))["status"] == "rolling"
        arms = await service.ask_until(lambda: service.live.keeper.rollout.live is not None)
        assert arms["next"] > 0
        assert arms["bon"] > 0
        await service.until(lambda: list(service.runtime.policies) == ["ref", "live"])
        reload = await service.client.post("/admin/reload", json={"model": "live"})
        assert "checkpoints never change" in reload.json()["error"]["message"]
        after = await service.ask()
        assert after["routing"] == {
            "arm": "live", "share": 1.0, "step": None, "checkpoint": "0001",
        }  # fmt: skip
        assert (after["policy"]["name"], after["text"]) == ("live", f" {GOOD}" * 6)
        state, metrics = await service.state(), await service.metrics()
    assert (state["live"], state["next"], state["training_tokens"]) == ("0001", None, 100)
    assert [event["kind"] for event in state["events"]] == [
        "live", "advanced", "started", "submitted",
    ]  # fmt: skip
    by_arm = {one["arm"]: one for one in state["arms"]}
    assert {arm: one["requests"] for arm, one in by_arm.items()} == {
        "bon": arms["bon"] + 1, "next": arms["next"], "live": 1,
    }  # fmt: skip
    # Every answer is compared while the checkpoint is rolled out, those of best-of-N with a sample of it.
    assert {arm: one["shadows"] for arm, one in by_arm.items()} == {
        "bon": arms["bon"], "next": arms["next"], "live": 1,
    }  # fmt: skip
    compared, drawn = state["shadows"]["tokens"], 6 * arms["bon"]
    assert drawn < compared <= drawn + 24 * (arms["next"] + 1)  # at most 6 tokens each
    assert state["events"][0]["detail"]["shadows"] == arms["bon"] + arms["next"]
    assert (by_arm["live"]["tokens"], by_arm["live"]["share"]) == (6, 1.0)
    assert state["checkpoints"][0]["evidence"]["shadows"] == 1
    assert metrics['vbon_distil_checkpoint_info{checkpoint="0001",status="live"}'] == 1
    assert metrics['vbon_distil_share{arm="live"}'] == 1
    evidence = state["checkpoints"][0]["evidence"]
    assert metrics['vbon_distil_evidence{arm="live",side="fall"}'] == evidence["fall"]
    assert metrics['vbon_distil_shadow_win_rate{arm="live"}'] == evidence["win_rate"]
    assert metrics['vbon_distil_auto_requests_total{arm="next"}'] == arms["next"]
    assert metrics['vbon_distil_shadows_total{arm="next"}'] == arms["next"]
    assert metrics["vbon_distil_tokens_saved_total"] == pytest.approx(state["saved_tokens"])
    assert metrics["vbon_distil_training_tokens_total"] == 100
    assert metrics['vbon_distil_rollbacks_total{reason="win_rate"}'] == 0
    assert metrics['vbon:request_success_total{mode="shadow"}'] == sum(arms.values()) + 1
    assert metrics['vbon:request_success_total{mode="auto"}'] == sum(arms.values()) + 2


async def test_a_checkpoint_that_is_worse_is_rolled_back_and_no_request_fails(
    tmp_path: Path,
) -> None:
    builder = SpeakerBuilder()
    async with rolling(tmp_path, builder) as service:
        await service.submitted("0001", BAD)
        await service.ask_until(lambda: service.live.keeper.rollout.rolling is None)
        await service.until(lambda: "live-next" not in service.runtime.policies)
        await service.until(lambda: not builder.built[0].alive)
        assert (await service.ask())["routing"]["arm"] == "bon"
        found, metrics = await service.checkpoint("0001"), await service.metrics()
        assert (found["status"], found["why"], found["served"]) == (
            "rolled_back",
            "win_rate",
            False,
        )
        assert metrics['vbon_distil_rollbacks_total{reason="win_rate"}'] == 1
        assert not [name for name in metrics if name.startswith("vbon:request_errors_total")]
        event = (await service.state())["events"][0]
        assert (event["kind"], event["detail"]["reason"]) == ("rolled_back", "win_rate")
        # Few requests were enough: a tenth of the reference's rewards are below those of this checkpoint.
        assert event["detail"]["shadows"] < 20


async def test_a_live_checkpoint_that_falls_is_rolled_back(tmp_path: Path) -> None:
    async with rolling(tmp_path, run_length=1000.0) as service:
        await service.submitted("0001")
        await service.promote("0001")
        assert (await service.checkpoint("0001"))["status"] == "live"
        await service.until(lambda: "live" in service.runtime.policies)
        engine = service.runtime.policies["live"]
        assert isinstance(engine, Speaker)
        for _ in range(5):
            await service.ask()
        engine.word = 1  # its answers get worse
        await service.ask_until(lambda: service.live.keeper.rollout.live is None)
        found = await service.checkpoint("0001")
        assert (found["status"], found["why"]) == ("rolled_back", "fall")
        assert (await service.metrics())['vbon_distil_rollbacks_total{reason="fall"}'] == 1


async def test_conversations_stay_on_their_arm_and_shares_are_near_their_value(
    tmp_path: Path,
) -> None:
    async with rolling(tmp_path, shares=[0.25, 1.0], shadow_share=1e-9) as service:
        await service.submitted("0001")
        arms = {i: (await service.ask(f"p{i}"))["routing"]["arm"] for i in range(120)}
        again = {i: (await service.ask(f"P{i} "))["routing"]["arm"] for i in range(0, 120, 7)}
        assert again == {i: arms[i] for i in again}
        # Binomial(120, 1/4): outside these with probability 2e-4. The prompts are fixed.
        assert 13 <= list(arms.values()).count("next") <= 49
        chats = []
        for turn in range(3):
            said = [{"role": "user", "content": "hello"}]
            for number in range(turn):
                said += [
                    {"role": "assistant", "content": f"answer {number}"},
                    {"role": "user", "content": f"more {number}"},
                ]
            body = {"model": "auto", "messages": said, "max_tokens": 3}
            response = await service.client.post("/v1/chat/completions", json=body)
            chats.append(response.json()["vbon"]["routing"]["arm"])
        assert len(set(chats)) == 1
        batch = {"prompts": [f"p{i}" for i in range(30)], "max_tokens": 2}
        response = await service.client.post("/generate", params={"mode": "auto"}, json=batch)
        assert response.json()["mode"] == "auto"
        assert [one["routing"]["arm"] for one in response.json()["answers"]] == [
            arms[i] for i in range(30)
        ]


async def on_arm(service: Rolling, arm: str) -> str:
    """A prompt that this arm answers."""
    for number in range(100):
        if (await service.ask(f"{arm}? {number}"))["routing"]["arm"] == arm:
            return f"{arm}? {number}"
    raise AssertionError(f"no prompt is answered by {arm}")


async def test_streams_tell_their_arm_and_finish_on_what_they_began_on(tmp_path: Path) -> None:
    builder = SpeakerBuilder(lambda path: Speaker(path, seconds_per_token=0.002))
    async with rolling(tmp_path, builder, shadow_share=1e-9) as service:
        await service.submitted("0001")
        headers = {"headers": [(b"authorization", bearer(ROOT_KEY)["authorization"].encode())]}
        prompt = await on_arm(service, "next")

        def streamed(path: str, **body: Any) -> Any:
            asked = {"prompt": prompt, "max_tokens": 40, "stream": True, **body}
            return with_key(service.app, path, asked, headers)

        begun = [
            asyncio.create_task(streamed("/generate?mode=auto")),
            asyncio.create_task(streamed("/v1/completions", model="auto", logprobs=0)),
            asyncio.create_task(streamed("/v1/completions", model="live-next")),
        ]
        await service.until(lambda: builder.built[0].unfinished == 3)
        assert (await service.post("rollback", {"to": None})).status_code == 200
        await service.until(lambda: "live-next" not in service.runtime.policies)
        native, openai, named = await asyncio.gather(*begun)
        (answer,) = native.named("answer")
        assert answer["routing"]["checkpoint"] == "0001"
        assert answer["text"] == f" {GOOD}" * 40
        assert len(native.named("token")) > 1
        for seen in (openai, named):
            chunks = [data for _, data in seen.events if data != "[DONE]"]
            assert "".join(one["choices"][0]["text"] for one in chunks) == f" {GOOD}" * 40
            assert {one["system_fingerprint"] for one in chunks} == {answer["policy"]["revision"]}
        report = [data for _, data in openai.events if data != "[DONE]"][-1]["vbon"]
        assert report["routing"]["arm"] == "next"
        await service.until(lambda: not builder.built[0].alive)  # only when all had finished
        seen = await streamed("/generate?mode=auto", n=3)
        (answer,) = seen.named("answer")
        assert (answer["routing"]["arm"], answer["sampling"]["n"]) == ("bon", 3)
        assert len(seen.named("candidate")) == 3


async def test_a_request_on_the_old_live_checkpoint_outlives_the_new_one_s_promotion(
    tmp_path: Path,
) -> None:
    gate = asyncio.Event()

    class Gated(Speaker):
        async def _decode_for(self, tokens: int) -> None:
            if tokens > 50:
                await gate.wait()
            await super()._decode_for(tokens)

    builder = SpeakerBuilder(Gated)
    async with rolling(tmp_path, builder, shadow_share=1e-9) as service:

        async def live(name: str, word: str) -> None:
            await service.submitted(name, word)
            await service.promote(name)

        await live("0001", BAD)
        body = {"model": "auto", "prompt": "p", "max_tokens": 60}
        begun = asyncio.create_task(service.client.post("/v1/completions", json=body))
        old = builder.built[0]
        await service.until(lambda: old.unfinished == 1)
        await live("0002", GOOD)
        await service.until(lambda: service.live.served.names == {"0002": "live"})
        assert (await service.ask("p"))["routing"]["checkpoint"] == "0002"
        assert old.alive
        gate.set()
        answer = (await begun).json()
        assert answer["vbon"]["routing"]["checkpoint"] == "0001"
        assert answer["choices"][0]["text"] == f" {BAD}" * 60
        await service.until(lambda: not old.alive)


async def with_key(app: Any, path: str, body: dict[str, Any], scope: dict[str, Any]) -> Any:
    """Stream from the app as a client with an API key."""

    async def keyed(inner: dict[str, Any], receive: Any, send: Any) -> None:
        await app({**inner, **scope}, receive, send)

    return await stream(keyed, path, body)  # type: ignore[arg-type]


async def test_a_person_approves_refuses_and_rolls_back(tmp_path: Path) -> None:
    async with rolling(tmp_path, approve=True, shadow_share=1e-9) as service:
        for name in ("0001", "0002", "0003"):
            assert (await service.submit(name)).json()["status"] == "waiting"
        assert (await service.ask())["routing"]["arm"] == "bon"
        refused = await service.post("checkpoints/0003/refuse")
        assert refused.json()["status"] == "refused"
        for name in ("0001", "0002"):
            assert (await service.promote(name)).json()["status"] == "rolling"
            await service.until(lambda name=name: name in service.live.served.alive)  # type: ignore[misc]
            assert (await service.promote(name)).json()["status"] == "live"
        assert (await service.ask())["routing"]["checkpoint"] == "0002"
        assert (await service.post("checkpoints/0002/refuse")).status_code == 422
        back = (await service.post("rollback", {"to": "0001"})).json()
        assert (back["live"], back["stored"]) == ("0001", True)
        statuses = {one["id"]: one["status"] for one in back["checkpoints"]}
        assert statuses == {"0001": "live", "0002": "rolled_back", "0003": "refused"}
        await service.until(lambda: service.live.served.names == {"0001": "live"})
        assert (await service.ask())["routing"]["checkpoint"] == "0001"
        assert (await service.post("rollback", {"to": None})).json()["live"] is None
        assert (await service.ask())["routing"]["arm"] == "bon"
        never = await service.post("rollback", {"to": "0003"})
        assert (never.status_code, never.json()["error"]["param"]) == (422, "to")
        for path in ("checkpoints/none/promote", "checkpoints/none/refuse"):
            assert (await service.post(path)).status_code == 404
        assert (await service.post("rollback", {"to": "none"})).status_code == 404
        assert (await service.client.get("/distil/checkpoints/none")).status_code == 404
        found = (await service.client.get("/distil/checkpoints/0003")).json()
        assert found["decision"]["reasons"] == ["It wins."]


async def test_the_same_decision_sent_again_changes_nothing(tmp_path: Path) -> None:
    """A client that got no answer sends its request again, and two people may press the same button."""
    async with rolling(tmp_path, shares=[0.1, 0.2, 0.5, 1.0], approve=True) as service:
        await service.submit("0001")

        async def sent(body: Any, times: int = 2) -> dict[str, Any]:
            answers = await asyncio.gather(
                *(service.post("checkpoints/0001/promote", body) for _ in range(times))
            )
            assert {one.status_code for one in answers} == {200}
            return await service.checkpoint("0001")

        for body in (None, {"status": "waiting", "step": None}, {"status": "waiting"}):
            found = await sent(body)
            assert (found["status"], found["step"]) == ("rolling", 0)
        for step, now in ((0, 1), (1, 2), (0, 2), (1, 2)):
            found = await sent({"status": "rolling", "step": step}, 3)
            assert (found["status"], found["step"]) == ("rolling", now)
        assert (await sent(None))["step"] == 2
        for _ in range(2):
            assert (await sent({"status": "rolling", "step": 2}))["status"] == "live"
        kinds = [one["kind"] for one in (await service.state())["events"]]
        assert kinds == ["live", *["advanced"] * 3, "started", "approved", "submitted"]
        wrong = await service.post("checkpoints/0001/promote", {"status": "new"})
        assert wrong.status_code == 422
        await service.submit("0002")
        await service.promote("0002")
        for _ in range(2):  # rolled back, then again
            answer = await service.post("checkpoints/0002/refuse")
            assert answer.json()["status"] == "rolled_back"
        for _ in range(2):
            assert (await service.post("rollback", {"to": None})).status_code == 200
        kinds = [one["kind"] for one in (await service.state())["events"]]
        assert kinds.count("rolled_back") == 2


async def test_a_checkpoint_that_cannot_be_used_is_a_clear_error_and_changes_nothing(
    tmp_path: Path,
) -> None:
    async with rolling(tmp_path) as service:
        outside = tmp_path / "outside"
        outside.mkdir()
        (service.kept / "rounds").mkdir(parents=True)
        (service.kept / "rounds" / "linked").symlink_to(outside)
        bare = service.kept / service.write("0002", GOOD)
        (bare / "checksums.json").unlink()
        damaged = service.kept / service.write("0003", GOOD)
        (damaged / "tokenizer.json").write_text('{"word": "bad"}')
        for path, words in (
            ("rounds/none/checkpoint", "there is no directory"),
            ("rounds", "is not below"),
            ("rounds/../x", "is not below"),
            (str(outside), "is not below"),
            ("rounds/linked", "is not below"),
            ("rounds/0002/checkpoint", "no checksums.json"),
            ("rounds/0003/checkpoint", "tokenizer.json"),
            ("rounds/a b/checkpoint", "cannot be the id"),
            ("a\0b", "cannot be used"),
        ):
            body = {"path": path, "decision": decision()}
            refused = await service.post("checkpoints", body)
            assert refused.status_code == 422, path
            assert words in refused.json()["error"]["message"], path
            assert refused.json()["error"]["param"] == "path"
        state = await service.state()
        assert (state["checkpoints"], state["events"], state["next"]) == ([], [], None)
        first = await service.submit("0001")
        path = f"{service.kept}/rounds/0001/checkpoint"
        again = await service.post("checkpoints", {"path": path, "decision": decision("refuse")})
        assert again.json()["created"] == first.json()["created"]
        assert again.json()["decision"]["verdict"] == "promote"
        await service.until(lambda: "0001" in service.live.served.alive)
        (service.kept / "rounds/0001/checkpoint").rename(tmp_path / "gone")
        service.write("0001", BAD)
        other = await service.post("checkpoints", {"path": path, "decision": decision()})
        assert "checkpoints never change" in other.json()["error"]["message"]
        wrong = await service.post("checkpoints", {"path": path, "decision": {"verdict": "yes"}})
        assert wrong.status_code == 422


async def test_a_checkpoint_that_does_not_load_gets_no_request(tmp_path: Path) -> None:
    submitted = asyncio.Event()

    class Broken(Speaker):
        async def start(self) -> None:
            await submitted.wait()  # else it may fail before the submission is answered
            raise EngineDeadError("out of memory")

    async with rolling(tmp_path, SpeakerBuilder(Broken)) as service:
        assert (await service.submit("0001")).json()["status"] == "rolling"
        submitted.set()
        await service.until(lambda: service.live.keeper.rollout.rolling is None)
        found, state = await service.checkpoint("0001"), await service.state()
        assert (found["status"], found["why"]) == ("rolled_back", "failed")
        assert "out of memory" in state["events"][0]["detail"]["message"]
        assert (await service.ask())["routing"]["arm"] == "bon"
        assert list(service.runtime.policies) == ["ref"]


async def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    async with rolling(tmp_path, shares=[0.3, 0.6, 1.0]) as service:
        await service.submitted("0001")
        await service.promote("0001")
        await service.promote("0001")
        await service.submitted("0002")
        await service.ask_until(lambda: service.live.keeper.totals.shadows["next"] >= 3)
        before = await service.state()
    async with rolling(tmp_path, shares=[0.3, 0.6, 1.0]) as service:
        await service.until(lambda: service.live.served.alive == {"0001", "0002"})
        assert service.live.served.names == {"0001": "live", "0002": "live-next"}
        after = await service.state()
        assert after == before
        arms = {(await service.ask())["routing"]["arm"] for _ in range(30)}
        assert arms == {"live", "next"}


async def test_a_kill_after_any_answer_loses_no_decision(tmp_path: Path) -> None:
    """A copy of the store as it is when a decision is answered is what a killed service leaves."""
    expected: dict[Path, tuple[Any, Any, dict[str, str]]] = {}

    async def note(service: Rolling, response: httpx.Response) -> None:
        assert response.status_code == 200, response.text
        left = tmp_path / f"left-{len(expected)}"
        left.mkdir()
        shutil.copyfile(tmp_path / "runs.db", left / "runs.db")
        state = await service.state()
        statuses = {one["id"]: one["status"] for one in state["checkpoints"]}
        expected[left] = (state["live"], state["next"], statuses)

    async with rolling(tmp_path, shadow_share=1e-9) as service:
        await note(service, await service.submit("0001"))
        await note(service, await service.promote("0001"))
        await note(service, await service.submit("0002", verdict="undecided"))
        await note(service, await service.promote("0002"))
        await note(service, await service.post("rollback", {"to": "0001"}))
        await note(service, await service.submit("0003", verdict="refuse"))
        await note(service, await service.post("rollback", {"to": None}))
    assert len({str(one) for one in expected.values()}) == len(expected)
    for left, (live, following, statuses) in expected.items():
        async with rolling(left, shadow_share=1e-9) as service:
            state = await service.state()
            assert (state["live"], state["next"]) == (live, following)
            assert {one["id"]: one["status"] for one in state["checkpoints"]} == statuses
            wanted = {one for one in (live, following) if one is not None}
            await service.until(lambda wanted=wanted: service.live.served.alive == wanted)  # type: ignore[misc]


async def test_a_checkpoint_whose_directory_has_gone_leaves_best_of_n(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with rolling(tmp_path) as service:
        await service.submitted("0001")
        await service.promote("0001")
    (tmp_path / "kept" / "rounds").rename(tmp_path / "elsewhere")
    async with rolling(tmp_path) as service:
        await service.until(lambda: service.live.keeper.rollout.live is None)
        assert (await service.client.get("/readyz")).status_code == 200
        assert (await service.ask())["routing"]["arm"] == "bon"
        event = (await service.state())["events"][0]
        assert (event["kind"], event["detail"]["reason"]) == ("rolled_back", "failed")
        assert "does not exist" in event["detail"]["message"]
        assert "checkpoint 0001 cannot be served" in caplog.text
        # Once it is back, it can be live again in one step.
        (tmp_path / "elsewhere").rename(tmp_path / "kept" / "rounds")
        assert (await service.post("rollback", {"to": "0001"})).json()["live"] == "0001"
        await service.until(lambda: "live" in service.runtime.policies)


async def test_a_checkpoint_that_was_changed_is_not_loaded_after_a_restart(tmp_path: Path) -> None:
    async with rolling(tmp_path) as service:
        await service.submitted("0001")
    (tmp_path / "kept" / "rounds").rename(tmp_path / "elsewhere")
    async with rolling(tmp_path, shadow_share=0.5) as service:
        service.write("0001", BAD)
        await service.until(lambda: service.live.keeper.rollout.rolling is None)
        assert list(service.runtime.policies) == ["ref"]


async def test_without_its_store_nothing_changes_but_a_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "RETRY_S", 0.01)
    async with rolling(tmp_path, shadow_share=1e-9) as service:
        await service.submitted("0001")

        async def lost(*_: Any) -> Any:
            raise StoreError("the store failed: disk I/O error")

        with monkeypatch.context() as patched:
            patched.setattr(AsyncStore, "use", lost)
            seen = {"status": "rolling", "step": 0}
            for path, body in (("promote", seen), ("refuse", None)):
                refused = await service.post(f"checkpoints/0001/{path}", body)
                assert (refused.status_code, refused.json()["error"]["type"]) == (
                    503, "store_unavailable",
                )  # fmt: skip
            refused = await service.submit("0002")
            assert refused.status_code == 503
            state = await service.state()
            assert [one["id"] for one in state["checkpoints"]] == ["0001"]
            assert state["next"] == "0001"
            arms = {(await service.ask())["routing"]["arm"] for _ in range(20)}
            assert arms == {"bon", "next"}
            back = (await service.post("rollback", {"to": None})).json()
            assert (back["next"], back["stored"]) == (None, False)
            assert (await service.metrics())["vbon_distil_stored"] == 0
            assert (await service.ask())["routing"]["arm"] == "bon"
        await service.until(lambda: service.live.stored)
    async with rolling(tmp_path) as service:
        assert (await service.checkpoint("0001"))["status"] == "rolled_back"
        assert (await service.state())["events"][0]["id"] > 0


async def test_what_happens_while_a_decision_is_stored_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision is made on a copy of the state, which takes its place once it is stored."""
    whole = AsyncStore.use
    async with rolling(tmp_path, shadow_share=1e-9, approve=True) as service:
        for name in ("0001", "0002"):
            await service.submit(name)
        await service.promote("0001")
        await service.until(lambda: "0001" in service.live.served.alive)
        keeper = service.live.keeper

        async def slow(store: AsyncStore, work: Any) -> Any:
            keeper.observe("0001", 0.5)
            keeper.fail("0001", "its engine does not start any more")
            assert keeper.rollout.rolling is not None
            return await whole(store, work)

        with monkeypatch.context() as patched:
            patched.setattr(AsyncStore, "use", slow)
            assert (await service.promote("0002")).json()["status"] == "rolling"
        state = {one["id"]: one for one in (await service.state())["checkpoints"]}
        assert (state["0001"]["status"], state["0001"]["why"]) == ("rolled_back", "failed")
        assert state["0001"]["evidence"]["shadows"] == 1
        await service.until(lambda: service.live.stored)
        await service.until(lambda: service.live.served.alive == {"0002"})


async def test_an_engine_that_restarts_with_other_files_does_not_answer(tmp_path: Path) -> None:
    async with rolling(tmp_path, shares=[1.0], shadow_share=1e-9) as service:
        await service.submitted("0001")
        engine = service.runtime.policies["live"]
        assert isinstance(engine, Speaker)
        assert (await service.ask())["routing"]["arm"] == "live"
        engine.info = replace(engine.info, revision="sha256:other")
        assert (await service.ask())["routing"]["arm"] == "bon"
        assert (await service.checkpoint("0001"))["served"] is False


async def test_a_store_that_cannot_be_read_leaves_best_of_n_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "RETRY_S", 0.01)
    async with rolling(tmp_path) as service:
        await service.submitted("0001")
        await service.promote("0001")
    whole = AsyncStore.use
    failing = True

    async def lost(store: AsyncStore, work: Any) -> Any:
        if failing:
            raise StoreError("the store failed")
        return await whole(store, work)

    monkeypatch.setattr(AsyncStore, "use", lost)
    monkeypatch.setattr("tests.unit.rolling.Rolling.until", once_started(Rolling.until))
    async with rolling(tmp_path) as service:
        assert (await service.ask())["routing"]["arm"] == "bon"
        refused = await service.client.get("/distil/checkpoints")
        assert refused.status_code == 503
        assert "cannot be read from the store" in refused.json()["error"]["message"]
        assert (await service.post("rollback", {"to": None})).status_code == 503
        failing = False
        await service.until(lambda: "0001" in service.live.served.alive)
        assert (await service.ask())["routing"]["arm"] == "live"


async def test_a_store_restored_from_an_older_copy_gets_back_what_it_lost(tmp_path: Path) -> None:
    async with rolling(tmp_path) as service:
        await service.submitted("0001")
        await service.until(lambda: service.live.stored)
        with (
            closing(sqlite3.connect(tmp_path / "older.db")) as older,
            closing(sqlite3.connect(tmp_path / "runs.db")) as database,
        ):
            database.backup(older)
            await service.promote("0001")
            await service.submitted("0002")
            await service.until(lambda: service.live.stored)
            older.backup(database)
        found = await service.submit("0003", verdict="undecided")
        assert found.status_code == 200, found.text
    async with rolling(tmp_path) as service:
        state = await service.state()
        assert (state["live"], state["next"]) == ("0001", "0002")
        assert len(state["checkpoints"]) == 3
        await service.until(lambda: service.live.served.alive == {"0001", "0002"})


async def test_a_store_restored_from_a_later_copy_does_not_swallow_decisions(
    tmp_path: Path,
) -> None:
    async with rolling(tmp_path, approve=True) as service:
        await service.submit("0001")
        later = RolloutChange(1_000, {"rollout": {}, "totals": {}}, {"0001": "live"})
        await service.app.state.store.use(lambda store: save_rollout(store, later))
        await service.promote("0001")
    async with rolling(tmp_path, approve=True) as service:
        assert (await service.checkpoint("0001"))["status"] == "rolling"


async def test_a_submission_that_was_stored_too_late_can_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database has the checkpoint's row, and the rollout has answered that it could not be stored."""
    whole = AsyncStore.use

    async def late(store: AsyncStore, work: Any) -> Any:
        await whole(store, work)
        raise StoreError("the store did not answer within 5 s")

    async with rolling(tmp_path) as service:
        with monkeypatch.context() as patched:
            patched.setattr(AsyncStore, "use", late)
            assert (await service.submit("0001")).status_code == 503
        await service.ask()  # so that the present state is stored at the end
    async with rolling(tmp_path) as service:
        assert (await service.state())["checkpoints"] == []
        body = {"path": "rounds/0001/checkpoint", "decision": decision()}
        assert (await service.client.post("/distil/checkpoints", json=body)).status_code == 200
        await service.until(lambda: "0001" in service.live.served.alive)
        assert (await service.checkpoint("0001"))["status"] == "rolling"


async def test_a_damaged_state_leaves_best_of_n_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "RETRY_S", 0.01)
    async with rolling(tmp_path) as service:
        await service.submitted("0001")
    with closing(sqlite3.connect(tmp_path / "runs.db")) as database, database:
        (whole,) = database.execute("SELECT state FROM distil_state").fetchone()
        database.execute("UPDATE distil_state SET state = '{\"rollout'")
    monkeypatch.setattr("tests.unit.rolling.Rolling.until", once_started(Rolling.until))
    async with rolling(tmp_path) as service:
        assert (await service.ask())["routing"]["arm"] == "bon"
        await service.until(lambda: "cannot be read" in str(service.live.keeper._trouble))
        refused = await service.client.get("/distil/checkpoints")
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "store_unavailable")
        with closing(sqlite3.connect(tmp_path / "runs.db")) as database, database:
            database.execute("UPDATE distil_state SET state = ?", (whole,))
        await service.until(lambda: "0001" in service.live.served.alive)


async def test_a_rollback_takes_effect_while_the_store_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "LIMIT_S", 60.0)
    async with rolling(tmp_path, shadow_share=1e-9) as service:
        await service.submitted("0001")
        keeper, hangs, asked = service.live.keeper, asyncio.Event(), asyncio.Event()
        whole = AsyncStore.use

        async def hanging(store: AsyncStore, work: Any) -> Any:
            asked.set()
            await hangs.wait()
            return await whole(store, work)

        with monkeypatch.context() as patched:
            patched.setattr(AsyncStore, "use", hanging)
            keeper._dirty.set()
            keeper._urgent.set()
            await asked.wait()  # counts are being stored
            back = asyncio.create_task(service.post("rollback", {"to": None}))
            await service.until(lambda: keeper.rollout.rolling is None)
            assert (await service.ask())["routing"]["arm"] == "bon"
            hangs.set()
            assert (await back).json()["stored"] is True


def once_started(until: Any) -> Any:
    """``until`` without the first wait, which is for the store."""
    calls = iter([True])

    async def skipping(self: Rolling, condition: Any) -> None:
        if next(calls, False):
            return
        await until(self, condition)

    return skipping


async def test_a_dead_engine_leaves_its_requests_to_others(tmp_path: Path) -> None:
    class Dying(Speaker):
        dies = False

        async def generate(self, *args: Any, **options: Any) -> Any:
            if self.dies:
                self._alive = False
                raise EngineDeadError("the engine process was killed")
            async for candidate in super().generate(*args, **options):
                yield candidate

    builder = SpeakerBuilder(Dying)
    async with rolling(tmp_path, builder, shadow_share=1e-9) as service:
        await service.submitted("0001")
        prompt = await on_arm(service, "next")
        engine = builder.built[0]
        assert isinstance(engine, Dying)
        await service.runtime.supervisor.remove("live-next")
        engine.dies = True
        during = await service.ask(prompt)  # it dies of this one
        assert during["routing"]["arm"] == "bon"
        assert not engine.alive
        after = await service.ask(prompt)
        assert after["routing"] == {"arm": "bon", "share": 1.0, "step": None, "checkpoint": None}
        state = await service.state()
        assert state["fallbacks"] == 2
        assert state["checkpoints"][0]["served"] is False


def test_the_win_rate_of_an_answer_counts_ties_half_and_leaves_out_what_has_no_reward() -> None:
    assert win_rate(2.0, [1.0, 2.0, 3.0, 0.0]) == (2 + 0.5) / 4
    assert win_rate(2.0, [1.0, None, float("nan"), 3.0]) == 0.5
    assert win_rate(5.0, [1.0]) == 1.0
    assert win_rate(0.0, [0.0, 0.0]) == 0.5
    assert win_rate(None, [1.0]) is None
    assert win_rate(1.0, []) is None
    assert win_rate(1.0, [None]) is None
    assert win_rate(float("inf"), [1.0]) is None


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.9, 0.98])
def test_best_of_n_itself_passes_where_rewards_are_tied(rate: float) -> None:
    """Enumeration of rewards of 0 and 1 for N = 4, whose threshold is 0.75: 4/5 less a margin of 0.05."""
    n = 4

    def mean(of_answer: float, judge: Any) -> float:
        """The mean over all candidates and answers, where 1 is answered with this probability."""
        total = 0.0
        for drawn in product((0.0, 1.0), repeat=n):
            weight = math.prod(rate if one else 1 - rate for one in drawn)
            for answer, chance in ((1.0, of_answer), (0.0, 1 - of_answer)):
                total += weight * chance * judge(answer, drawn)
        return total

    of_best = 1 - (1 - rate) ** n
    assert mean(of_best, win_rate) < 0.75  # the margin would be broken by best-of-N itself
    # It passes with no margin at all: its mean is that without ties, or up to the gain of one candidate more.
    of_fewer = 1 - (1 - rate) ** (n - 1)
    assert 0.8 - 1e-9 <= mean(of_best, judged_win_rate) <= 0.8 + (of_best - of_fewer) / 2
    # What another answer is judged to lose against best-of-N is what it loses in win rate.
    for chance in (0.0, rate / 2, rate, of_fewer):
        lost = mean(of_best, win_rate) - mean(chance, win_rate)
        judged = mean(of_best, judged_win_rate) - mean(chance, judged_win_rate)
        assert judged == pytest.approx(lost)


def test_without_ties_at_the_top_the_win_rate_is_judged_as_it_is() -> None:
    for answer in (0.5, 1.0, 2.5, 4.0, 9.0):
        rewards = [1.0, 1.0, 3.0, 4.0]
        assert judged_win_rate(answer, rewards) == win_rate(answer, rewards)
    assert judged_win_rate(1.0, [1.0] * 4) == pytest.approx(4 / 5)
    assert judged_win_rate(0.0, [1.0] * 4) == pytest.approx(0.3)
    assert judged_win_rate(2.0, [1.0] * 4) == pytest.approx(1.3)  # 1, and 0.3 for the ties
    assert judged_win_rate(None, [1.0, None]) == 0.0
    assert judged_win_rate(1.0, [None, float("nan")]) is None


async def test_a_checkpoint_whose_directory_was_removed_is_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop removes old ones; what is gone cannot be promoted or gone back to, and nothing changes."""
    async with rolling(tmp_path, shares=[1.0]) as service:
        for name in ("0001", "0002"):
            await service.submitted(name)
        shutil.rmtree(service.kept / "rounds" / "0001" / "checkpoint")
        state = await service.state()
        assert state["lora_rank"] is None
        found = {one["id"]: (one["status"], one["available"]) for one in state["checkpoints"]}
        assert found == {"0001": ("retired", False), "0002": ("live", True)}
        for action, body, field in (
            ("rollback", {"to": "0001"}, "to"),
            ("checkpoints/0001/promote", None, "id"),
        ):
            refused = await service.post(action, body)
            assert refused.status_code == 422
            assert refused.json()["error"]["param"] == field
            assert "was removed (vbon distil run --keep-rounds)" in refused.text
        assert (await service.state())["live"] == "0002"
        assert (await service.post("rollback", {"to": None})).status_code == 200
        assert (await service.post("rollback", {"to": "0002"})).json()["live"] == "0002"
        # A file system that does not answer removes nothing and holds nothing up.
        monkeypatch.setattr("service.distil.live_rollout.LOOK_S", 0.01)
        hangs = threading.Event()
        monkeypatch.setattr(Path, "is_dir", lambda _: hangs.wait(20))
        for _ in range(3):
            assert await service.live.removed() == set()
        names = [thread.name for thread in threading.enumerate()]
        assert (
            names.count("look-for-checkpoints") == 1
        )  # or a page that is open would add one with each look
        hangs.set()
        await service.until(lambda: service.live._looking is None or service.live._looking.done())

        def fail(_: Path) -> bool:
            raise OSError(errno.ESTALE, "Stale file handle")

        monkeypatch.setattr("service.distil.live_rollout.LOOK_S", 5.0)
        monkeypatch.setattr(Path, "is_dir", fail)
        assert await service.live.removed() == set()


def test_the_adapter_within_a_checkpoint_is_submitted_as_its_round_s(tmp_path: Path) -> None:
    """Its files are checked as those of an adapter, and whole weights of the round are another revision."""
    path = write_spoken(tmp_path, "0001", GOOD)
    adapter = tmp_path / path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    write_safetensors(adapter / "adapter_model.safetensors")
    write_checksums(adapter, "adapter")
    decided = Decision.model_validate(decision())
    whole, found = (submitted(tmp_path, one, decided, "none") for one in (path, f"{path}/adapter"))
    assert (found.id, found.path) == ("0001", str(adapter.resolve()))
    assert found.revision != whole.revision
    write_safetensors(adapter / "adapter_model.safetensors", b"\1" * 16)
    with pytest.raises(InvalidInputError, match="adapter_model"):
        submitted(tmp_path, f"{path}/adapter", decided, "none")


async def test_a_constant_reward_model_promotes_nothing_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.unit.fakes.score_text", lambda text: 0.25)
    async with rolling(tmp_path) as service:
        await service.submitted("0001")
        for _ in range(120):
            await service.ask()
        state = await service.state()
        (found,) = state["checkpoints"]
    assert (found["status"], found["step"]) == ("rolling", 0)
    assert found["evidence"]["good"] == pytest.approx(0.0)
    assert state["shadows"]["flat"] == state["shadows"]["done"] == found["evidence"]["shadows"] > 60


async def test_a_constant_reward_model_that_fails_now_and_then_is_counted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 candidates with one that has no reward, u is 15/16: evidence for any checkpoint."""
    missing = iter(range(10**6))

    def score(text: str) -> float:
        checkpoint = set(text.split()[-6:]) == {GOOD}
        return 0.25 if checkpoint or next(missing) % 16 else math.nan

    monkeypatch.setattr("tests.unit.fakes.score_text", score)
    async with rolling(tmp_path, n=16, shares=[0.999, 1.0]) as service:
        await service.submitted("0001")
        for _ in range(12):
            await service.ask()
        state = await service.state()
        (found,) = state["checkpoints"]
    assert state["shadows"]["flat"] == state["shadows"]["done"] > 6
    assert found["evidence"]["good"] == pytest.approx(0.0)


async def test_a_service_tells_up_to_which_rank_it_serves_adapters(tmp_path: Path) -> None:
    async with rolling(tmp_path, lora_rank=8) as service:
        assert (await service.state())["lora_rank"] == 8


def test_savings_are_those_against_best_of_n() -> None:
    totals = AutoTotals()
    totals.answered("next", 10, 4)  # nothing is known: as if 4 candidates were as long
    assert totals.saved == 4 * 10 - 10
    totals.answered("bon", 60, 4)
    totals.shadowed("next", 100, 4)
    assert totals.saved == 30 - 100
    totals.shadowed("bon", 7, 4)  # one sample of the checkpoint: says nothing of best-of-N's tokens
    totals.answered("live", 5, 4)
    assert totals.saved == 30 - 100 - 7 + (60 + 100) / 2 - 5
    assert totals.compared_tokens == 107
    before = totals.saved
    totals.answered("live", 5, 2)  # best-of-2 would have answered this one
    assert totals.saved - before == 2 * (60 + 100) / 8 - 5
    assert (totals.requests, totals.tokens) == (
        {"bon": 1, "live": 2, "next": 1}, {"bon": 60, "live": 10, "next": 10},
    )  # fmt: skip


async def test_comparisons_are_left_out_where_they_are_in_the_way_or_tell_nothing(
    tmp_path: Path,
) -> None:
    async with rolling(tmp_path, shares=[1.0], shadow_load=0.75) as service:
        await service.submitted("0001")
        shadows = service.live.shadows

        async def skipped(**body: Any) -> dict[str, int]:
            before = shadows.skipped.copy()
            await service.ask(**body)
            return dict(shadows.skipped - before)

        assert await skipped() == {}
        assert await skipped(temperature=0) == {"sampling": 1}
        # What users get is judged as they get it; training cannot use the candidates.
        dropped = service.app.state.collector.writer.dropped
        for number, body in enumerate(({"top_p": 0.5}, {"ignore_eos": True}), start=1):
            assert await skipped(**body) == {}
            await service.until(lambda number=number: dropped["sampling"] == number)
        async with service.runtime.admission.enter(381):  # of 512: no room for 4 below 384
            assert await skipped() == {"busy": 1}
        async with service.runtime.admission.enter(380):
            assert await skipped() == {}
        state = await service.state()
        assert state["shadows"]["skipped"] == {"sampling": 1, "busy": 1}
        assert state["shadows"]["done"] == 4


async def test_a_comparison_over_a_change_of_weights_tells_nothing(tmp_path: Path) -> None:
    """Its candidates may be samples of two policies, once the first request to the reference is over."""

    class Changed(ChatEngine):
        async def generate(self, *args: Any, **options: Any) -> AsyncGenerator[Candidate, None]:
            async for candidate in super().generate(*args, **options):
                yield candidate
            if not self.info.replaced:
                self.info = self.info.changed_to(Checkpoint("ref", "second"))

    async with rolling(tmp_path, shares=[1.0], ref=Changed("ref")) as service:
        await service.submitted("0001")
        for _ in range(2):
            await service.ask()
        await service.until(lambda: service.live.keeper.totals.shadows["live"] == 1)
        assert service.live.shadows.skipped["reloaded"] == 1


async def test_a_comparison_makes_room_as_soon_as_a_request_waits(tmp_path: Path) -> None:
    slow = ChatEngine("ref", seconds_per_token=0.01, endless=True)
    async with rolling(tmp_path, shares=[1.0], ref=slow) as service:
        await service.submitted("0001")

        async def ask(mode: str = "auto", **changes: Any) -> bool:
            body = {"prompt": "p", "max_tokens": 100, **changes}
            response = await service.client.post("/generate", params={"mode": mode}, json=body)
            return response.is_success

        for number in range(3):
            assert await ask(prompt=f"p{number}")
        assert service.live.shadows.skipped["at_once"] == 1  # two at once
        await service.until(lambda: slow.running == 8)
        async with service.runtime.admission.enter(504):  # all of 512
            assert await ask("bon", n=8, max_tokens=1)
        assert service.live.shadows.skipped["stopped"] == 2
        assert slow.aborted == 8
        assert service.live.keeper.totals.shadows["live"] == 0


async def test_best_of_n_s_own_candidates_judge_a_checkpoint_also_under_load(
    tmp_path: Path,
) -> None:
    """One sample of the checkpoint is compared with the candidates of an answer, seeds apart."""
    asked = []

    class Noting(Speaker):
        async def generate(self, ids: Any, sampling: Any, *args: Any, **options: Any) -> Any:
            asked.append((sampling.seed, sampling.max_tokens))
            async for candidate in super().generate(ids, sampling, *args, **options):
                yield candidate

    async with rolling(tmp_path, SpeakerBuilder(Noting), shares=[1e-9, 1.0]) as service:
        await service.submitted("0001")
        async with service.runtime.admission.enter(500):  # of 512
            found = await service.ask(seed=5, return_candidates=True, max_tokens=3)
        assert found["routing"]["arm"] == "bon"
        assert asked == [(None, 3)]
        rewards = [one["reward"] for one in found["candidates"]]
        evidence = (await service.checkpoint("0001"))["evidence"]
        assert evidence["shadows"] == 1
        assert evidence["win_rate"] == win_rate(score_text(f" {GOOD}" * 3), rewards)
        await service.ask(temperature=0)
        assert (await service.state())["shadows"] == {
            "done": 1, "flat": 0, "tokens": 3, "skipped": {"sampling": 1},
        }  # fmt: skip
        assert (await service.state())["arms"][0]["shadows"] == 1
        await service.client.post("/distil/seal")
        assert {one.mode for one in kept(service.kept)} <= {"auto"}


async def test_a_comparison_makes_room_where_no_request_may_wait(tmp_path: Path) -> None:
    """Without a queue, requests are refused at once, so none is ever seen to wait."""
    slow = ChatEngine("ref", seconds_per_token=0.01, endless=True)
    async with rolling(tmp_path, shares=[1.0], ref=slow) as service:
        service.runtime.admission._max_waiting = 0  # limits.waiting_sequences
        await service.submitted("0001")
        body = {"prompt": "p", "max_tokens": 100}
        answer = await service.client.post("/generate", params={"mode": "auto"}, json=body)
        assert answer.is_success
        await service.until(lambda: slow.running == 4)
        async with service.runtime.admission.enter(508):  # the rest of 512
            await service.until(lambda: slow.running == 0)
        assert service.live.shadows.skipped["stopped"] == 1


async def test_shadows_are_kept_for_training_as_their_requests_allow(tmp_path: Path) -> None:
    async with rolling(tmp_path, shares=[1.0], exclude_keys=["ann"]) as service:
        await service.submitted("0001")
        answer = await service.ask("kept", seed=3)
        await service.ask("not stored", store=False)
        ann = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=service.app),
            base_url="http://test",
            headers=bearer(ANN_KEY),
        )
        body = {"prompt": "of an excluded key", "max_tokens": 6}
        async with ann:
            assert (await ann.post("/generate", params={"mode": "auto"}, json=body)).is_success
        await service.until(lambda: service.live.keeper.totals.shadows["live"] == 3)
        await service.client.post("/distil/seal")
        (one,) = kept(service.kept)
        assert (one.prompt, one.mode, one.seed) == ("kept", "shadow", None)
        assert one.request_id == answer["request_id"]
        assert (len(one.rewards), one.independent) == (4, 4)
        deleted = await service.client.delete(f"/distil/requests/{answer['request_id']}")
        assert deleted.json()["lines"] == 1


async def test_the_routes_say_if_nothing_is_rolled_out(tmp_path: Path) -> None:
    async with collecting(tmp_path) as (_, client):
        for method, path, body in (
            ("GET", "/distil/checkpoints", None),
            ("GET", "/distil/checkpoints/1", None),
            ("POST", "/distil/checkpoints", {"path": "x", "decision": decision()}),
            ("POST", "/distil/checkpoints/1/promote", None),
            ("POST", "/distil/checkpoints/1/refuse", None),
            ("POST", "/distil/rollback", {"to": None}),
        ):
            missing = await client.request(method, path, json=body)
            assert missing.status_code == 404
            assert "--distil.policy" in missing.text


async def test_the_comparison_of_a_deleted_request_keeps_nothing_of_it(tmp_path: Path) -> None:
    slow = ChatEngine("ref", seconds_per_token=0.02)
    async with rolling(tmp_path, shares=[1.0], ref=slow) as service:
        await service.submitted("0001")
        body = {"model": "auto", "prompt": "to forget", "max_tokens": 6}
        response = await service.client.post("/v1/completions", json=body)
        assert response.json()["vbon"]["routing"]["arm"] == "live"
        assert service.live.shadows._tasks
        deleted = await service.client.delete(f"/distil/requests/{response.json()['id']}")
        assert deleted.status_code == 200
        await service.until(lambda: not service.live.shadows._tasks)
        await service.client.post("/distil/seal")
        assert list(kept(service.kept)) == []
        assert service.live.shadows.skipped["stopped"] == 1


async def test_answers_that_cannot_be_scored_count_against_a_checkpoint(tmp_path: Path) -> None:
    async with rolling(tmp_path, shares=[0.5, 1.0]) as service:
        reward = service.runtime.reward
        assert reward is not None
        whole = reward._model.score
        reward._model.score = lambda items: [  # type: ignore[method-assign]
            None
            if item.completion.split()[0] == BAD and len(set(item.completion.split())) == 1
            else found
            for item, found in zip(items, whole(items), strict=True)
        ]
        await service.submitted("0001", BAD)
        await service.ask_until(lambda: service.live.keeper.rollout.rolling is None)
        assert (await service.checkpoint("0001"))["why"] == "win_rate"


async def test_a_stream_without_a_token_yet_goes_to_another_arm_if_its_engine_dies(
    tmp_path: Path,
) -> None:
    class Dying(Speaker):
        dies_after: int | None = None

        async def stream(self, *args: Any, **options: Any) -> Any:
            seen = 0
            async with aclosing(super().stream(*args, **options)) as parts:
                async for part in parts:
                    if seen == self.dies_after:
                        raise EngineDeadError("the engine process was killed")
                    seen += 1
                    yield part

    builder = SpeakerBuilder(Dying)
    async with rolling(tmp_path, builder, shadow_share=1e-9) as service:
        await service.submitted("0001")
        prompt = await on_arm(service, "next")
        headers = {"headers": [(b"authorization", bearer(ROOT_KEY)["authorization"].encode())]}
        body = {"prompt": prompt, "max_tokens": 6, "stream": True}
        engine = builder.built[0]
        assert isinstance(engine, Dying)
        engine.dies_after = 0
        native = await with_key(service.app, "/generate?mode=auto", body, headers)
        (answer,) = native.named("answer")
        assert (answer["routing"]["arm"], native.named("error")) == ("bon", [])
        openai = await with_key(service.app, "/v1/completions", {**body, "model": "auto"}, headers)
        chunks = [data for _, data in openai.events if data != "[DONE]"]
        assert chunks[-1]["vbon"]["routing"]["arm"] == "bon"
        assert {one["system_fingerprint"] for one in chunks} == {answer["policy"]["revision"]}
        engine.dies_after = 2
        native = await with_key(service.app, "/generate?mode=auto", body, headers)
        assert (len(native.named("error")), native.named("answer")) == (1, [])


def write_tokenizer(directory: Path, vocab: Any, template: str | None, added: str = "<s>") -> None:
    """Write a tokenizer as far as it is compared; transformers has two places for a template."""
    tokens = len(vocab)
    found = {"model": {"vocab": vocab}, "added_tokens": [{"content": added, "id": tokens}]}
    (directory / "tokenizer.json").write_text(json.dumps({**found, "word": GOOD}))
    config = {"chat_template": template} if template else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


VOCAB = {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("vocab", "template", "added", "words"),
    [
        (VOCAB, "{{ x }}", "<s>", None),
        ([["a", -1.5], ["b", -2.0]], "{{ x }}", "<s>", None),  # the same tokens in another form
        ({"a": 0, "b": 1, "c": 2}, "{{ x }}", "<s>", "first at token 2"),
        ({"a": 1, "b": 0}, "{{ x }}", "<s>", "another vocabulary"),
        (VOCAB, "{{ x }}", "</s>", "first at token 2, '</s>'"),
        (VOCAB, "{{ y }}", "<s>", "another chat template"),
        (VOCAB, None, "<s>", "another chat template"),
        ("nonsense", "{{ x }}", "<s>", "cannot be compared"),
    ],
)
async def test_a_checkpoint_that_reads_prompts_in_another_way_is_refused(
    tmp_path: Path, vocab: Any, template: str | None, added: str, words: str | None
) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    write_model(reference)
    write_tokenizer(reference, VOCAB, None)
    (reference / "chat_template.jinja").write_text("{{ x }}")
    write_checksums(reference, "causal-lm")
    async with rolling(tmp_path, ref=ChatEngine(str(reference))) as service:
        path = service.write("0001", GOOD)
        write_tokenizer(service.kept / path, vocab, template, added)
        write_checksums(service.kept / path, "causal-lm")
        answer = await service.post("checkpoints", {"path": path, "decision": decision()})
        if words is None:
            assert answer.status_code == 200, answer.text
            return
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "path")
        assert words in answer.json()["error"]["message"]
        assert (await service.state())["checkpoints"] == []


async def test_a_checkpoint_with_a_shorter_context_answers_nothing(tmp_path: Path) -> None:
    """Prompts that best-of-N accepts must not be refused because a checkpoint was to answer them."""
    builder = SpeakerBuilder(lambda path: Speaker(path, max_model_len=255))
    async with rolling(tmp_path, builder, shares=[1.0]) as service:
        await service.submit("0001")
        await service.until(lambda: service.live.keeper.rollout.live is None)
        found = await service.checkpoint("0001")
        assert (found["status"], found["why"]) == ("rolled_back", "failed")
        event = (await service.state())["events"][0]
        assert "takes 255 tokens and the reference policy 256" in event["detail"]["message"]
        answer = await service.ask("a" * 250, max_tokens=6)
        assert answer["routing"]["arm"] == "bon"


@pytest.mark.parametrize(("asked", "n"), [({"n": 2}, 2), ({}, 4), ({"n": 6}, 6)])
async def test_savings_are_those_of_the_n_that_the_request_would_have_had(
    tmp_path: Path, asked: dict[str, int], n: int
) -> None:
    async with rolling(tmp_path, shares=[1.0], shadow_share=1e-9) as service:
        await service.submitted("0001")
        await service.ask(**asked)  # nothing is known of best-of-N: n samples as long as this one
        assert (await service.state())["saved_tokens"] == (n - 1) * 6
        asked_v1 = {"model": "auto", "prompt": "p", "max_tokens": 6, "best_of": n}
        await service.client.post("/v1/completions", json=asked_v1)
        assert (await service.state())["saved_tokens"] == 2 * (n - 1) * 6


@pytest.mark.parametrize("what", ["the reward model", "the reference policy"])
@pytest.mark.parametrize("over", ["a reload", "a restart"])
async def test_evidence_ends_with_the_models_that_it_is_of(
    tmp_path: Path, what: str, over: str
) -> None:
    def change(runtime: Runtime) -> None:
        if what == "the reward model":
            assert runtime.reward is not None
            runtime.reward._model.revision = "second"
        else:
            engine = runtime.policies["ref"]
            engine.info = replace(engine.info, revision="second")  # type: ignore[misc]

    async def look(service: Rolling) -> None:
        state = await service.state()
        live = await service.checkpoint("0001")
        rolling_out = await service.checkpoint("0002")
        assert (live["status"], live["evidence"]["shadows"]) == ("live", 0)
        assert live["evidence"]["verified"] is False
        assert (rolling_out["status"], rolling_out["step"]) == ("rolling", 0)
        assert rolling_out["evidence"]["shadows"] == 0
        changed = [one for one in state["events"] if one["kind"] == "restarted"]
        assert [(one["checkpoint"], one["detail"]["reason"]) for one in changed] == [
            ("0002", what), ("0001", what),
        ]  # fmt: skip
        assert changed[1]["detail"]["shadows"] > 0  # what was known until then
        assert (await service.metrics())["vbon_distil_verified"] == 0

    settings: dict[str, Any] = {"shares": [0.3, 0.6, 1.0], "alpha": 1e-6}
    async with rolling(tmp_path, **settings) as service:
        await service.submitted("0001")
        for _ in range(2):
            await service.promote("0001")
        await service.submitted("0002")
        await service.promote("0002")
        for _ in range(12):
            await service.ask()
        assert (await service.checkpoint("0001"))["evidence"]["verified"] is True
        assert (await service.checkpoint("0002"))["step"] == 1
        if over == "a reload":
            change(service.runtime)
            await service.until(lambda: service.live.keeper.rollout.checkpoint("0002").step == 0)
            await look(service)
            return
    runtime = rolling_runtime(tmp_path, **settings)
    change(runtime)
    async with serving(runtime, rebuild=SpeakerBuilder()) as (app, client):
        client.headers.update(bearer(ROOT_KEY))
        service = Rolling(app, client, runtime, tmp_path / "kept")
        await service.until(lambda: service.live.keeper.read)
        await service.until(lambda: service.live.keeper.rollout.checkpoint("0002").step == 0)
        await look(service)


async def test_a_live_checkpoint_is_verified_again_by_its_answers(tmp_path: Path) -> None:
    async with rolling(tmp_path, shares=[1.0]) as service:
        await service.submitted("0001")
        assert service.runtime.reward is not None
        service.runtime.reward._model.revision = "second"
        keeper = service.live.keeper

        def verified() -> bool | None:
            return keeper.rollout.evidence("0001").verified

        await service.until(lambda: verified() is False)
        await service.ask_until(lambda: verified() is True)
        kinds = [one["kind"] for one in (await service.state())["events"]]
        assert kinds[:2] == ["verified", "restarted"]
        assert (await service.checkpoint("0001"))["status"] == "live"


async def test_comparisons_that_began_with_other_models_tell_nothing(tmp_path: Path) -> None:
    slow = ChatEngine("ref", seconds_per_token=0.01, endless=True)
    async with rolling(tmp_path, shares=[1.0], ref=slow) as service:
        await service.submitted("0001")
        body = {"prompt": "p", "max_tokens": 6}
        answer = await service.client.post("/generate", params={"mode": "auto"}, json=body)
        assert answer.is_success
        await service.until(lambda: slow.running == 4)
        assert service.runtime.reward is not None
        service.runtime.reward._model.revision = "second"
        await service.until(lambda: not service.live.shadows._tasks)
        assert service.live.shadows.skipped["reloaded"] == 1
        assert service.live.keeper.totals.shadows["live"] == 0


async def test_the_list_has_summaries_and_is_sent_only_if_it_has_changed(tmp_path: Path) -> None:
    """The page looks every 3 s; a decision may be long and never changes."""
    async with rolling(tmp_path, shares=[1.0], shadow_share=1e-9) as service:
        reasons = ["because " * 1000]
        for name in ("0001", "0002"):
            body = {"path": service.write(name, GOOD), "decision": decision()}
            body["decision"]["reasons"] = reasons
            assert (await service.post("checkpoints", body)).status_code == 200
        await service.until(lambda: service.live.served.names == {"0002": "live"})
        whole = await service.client.get("/distil/checkpoints")
        assert len(whole.content) < 8000
        found = (await service.client.get("/distil/checkpoints/0001")).json()
        assert found["decision"]["reasons"] == reasons
        assert found["decision"]["figures"]["reference"]["length"]["mean"] == 0.5
        (_, one) = whole.json()["checkpoints"]
        figures = {name: found["decision"]["figures"][name] for name in ("candidate", "bon")}
        assert one["decision"] == {
            "verdict": "promote",
            "figures": {
                policy: {name: all_of[name] for name in ("win_rate", "reward", "kl_nats")}
                for policy, all_of in figures.items()
            },
        }
        assert {**one, "decision": None} == {**found, "decision": None}
        headers = {"if-none-match": whole.headers["etag"]}
        same = await service.client.get("/distil/checkpoints", headers=headers)
        assert (same.status_code, same.content) == (304, b"")
        # A proxy that compresses answers marks tags as weak, and a cache may have several.
        several = {"if-none-match": f'"other", W/{headers["if-none-match"]}'}
        same = await service.client.get("/distil/checkpoints", headers=several)
        assert (same.status_code, same.content) == (304, b"")
        await service.ask()
        changed = await service.client.get("/distil/checkpoints", headers=headers)
        assert changed.status_code == 200
        assert changed.headers["etag"] != whole.headers["etag"]
