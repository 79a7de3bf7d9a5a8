"""Requests that are begun again once their engine is back: what they are charged, and what they tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.auth.keys import new_key, write_keys
from service.runtime.prompt import PromptRequest
from service.runtime.routing import Routing
from tests.unit.fakes import Irreplaceable, make_runtime, serving
from tests.unit.test_api import BODY, _until, post
from tests.unit.virtual_clock import virtually
from vbon.engine.drawn_by import note_weights
from vbon.engine.fake import FakeEngine
from vbon.engine.protocol import Candidate, Sampling
from vbon.errors import EngineDeadError
from vbon.prompts import Prompt

clocked = virtually("service", "vbon", "tests.unit")


@clocked
async def test_an_answer_that_is_begun_again_names_the_weights_of_the_second_time_alone() -> None:
    class Changing(FakeEngine):
        async def start(self) -> None:
            self.info = replace(
                self.info, revision="old" if self.info.revision == "fake" else "new"
            )
            await super().start()

        async def generate(self, *args: Any, **named: Any) -> AsyncGenerator[Candidate, None]:
            note_weights(self, self.info)
            async with aclosing(super().generate(*args, **named)) as candidates:
                async for candidate in candidates:
                    yield candidate

    engine = Changing("mortal", seconds_per_token=0.02, endless=True)
    runtime = make_runtime(engines={"ref": engine, "vbon": FakeEngine()})
    async with serving(runtime) as (_, client):
        pending = asyncio.create_task(post(client, "bon"))
        await _until(lambda: engine.running, pending)
        await engine.stop()
        policy = (await pending).json()["policy"]
    assert (policy["revision"], policy.get("earlier_revisions")) == ("new", None)


@clocked
async def test_a_request_that_is_begun_again_is_charged_to_its_key_once(tmp_path: Path) -> None:
    key, token = new_key("ann", tokens_per_minute=4 * 8)
    write_keys(tmp_path / "keys.jsonl", [key])
    engine = FakeEngine("mortal", seconds_per_token=0.02, endless=True)
    runtime = make_runtime(
        engines={"ref": engine, "vbon": FakeEngine()},
        auth={"keys_file": str(tmp_path / "keys.jsonl")},
    )
    async with serving(runtime) as (_, client):
        client.headers["authorization"] = f"Bearer {token}"
        pending = asyncio.create_task(post(client, "bon", n=4, max_tokens=8))
        await _until(lambda: engine.running, pending)
        await engine.stop()
        answer = await pending
        assert answer.status_code == 200, answer.text
        assert (await post(client, "bon", n=4, max_tokens=8)).status_code == 429


@clocked
async def test_nobody_waits_for_an_engine_while_the_service_shuts_down() -> None:
    engine = Irreplaceable("mortal", seconds_per_token=0.02, endless=True)
    runtime = make_runtime(engines={"ref": engine, "vbon": FakeEngine()})
    async with serving(runtime) as (_, client):
        pending = asyncio.create_task(post(client, "bon"))
        await _until(lambda: engine.running, pending)
        engine.decoded_tokens = 1
        await engine.stop()
        await asyncio.sleep(1)  # it waits by now
        assert not pending.done()
        assert await runtime.in_flight.drain(10) == 0
        assert (await pending).json()["error"]["type"] == "engine_dead"


@clocked
@pytest.mark.parametrize("leaves", [False, True])
async def test_nobody_waits_for_an_engine_that_was_replaced_or_has_left(leaves: bool) -> None:
    engine = FakeEngine("mortal", seconds_per_token=0.02, endless=True)
    runtime = make_runtime(engines={"ref": FakeEngine(), "vbon": engine})
    async with serving(runtime) as (_, client):
        await runtime.supervisor.remove("vbon")  # nobody starts it again
        pending = asyncio.create_task(post(client, "vbon"))
        await _until(lambda: engine.running, pending)
        await engine.stop()
        await asyncio.sleep(1)
        assert not pending.done()
        if leaves:
            await runtime.leave("vbon")
        else:
            await (other := FakeEngine()).start()
            await runtime.adopt_engines({"vbon": other})
        await runtime.in_flight.until_unused(engine)
        await asyncio.sleep(1)
        assert pending.done()
        assert (await pending).json()["error"]["type"] == "engine_dead"


@clocked
async def test_it_waits_for_the_other_engine_of_a_mode_that_uses_two() -> None:
    class Slow(FakeEngine):
        async def start(self) -> None:
            await asyncio.sleep(3 if self.decoded_tokens else 0)
            await super().start()

    target = Slow("target", seconds_per_token=0.5)
    runtime = make_runtime(engines={"ref": target, "vbon": FakeEngine("proposal", endless=True)})
    async with serving(runtime) as (_, client):
        body = {"target": "ref", "fallback": "best"}
        pending = asyncio.create_task(
            client.post("/generate?mode=corrected-bon&policy=vbon", json=BODY | body)
        )
        await asyncio.sleep(0.2)  # it reads the candidates of the other one
        target.decoded_tokens = 1
        await target.stop()
        answer = await pending
        assert answer.status_code == 200, answer.text


@clocked
@pytest.mark.parametrize("mode", ["bon", "vbon"])
async def test_best_of_n_that_mode_auto_has_chosen_is_begun_again_too(mode: str) -> None:
    """It has no other route, unlike a single sample."""
    engine = FakeEngine("mortal", seconds_per_token=0.02, endless=True)
    runtime = make_runtime(engines={"ref": engine, "vbon": engine})
    async with serving(runtime):
        sampling, routing = Sampling(max_tokens=4, seed=1), Routing("bon", 1.0)
        request = PromptRequest(
            runtime.mode(mode), Prompt(text="x"), sampling, 4, "x", routing=routing
        )
        answering = asyncio.create_task(runtime.answer(request))
        while not engine.running:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await engine.stop()
        if mode == "bon":
            assert len((await answering).outcome.candidates) == 4
        else:
            with pytest.raises(EngineDeadError):
                await answering


@clocked
async def test_what_waited_for_its_turn_when_the_engine_died_is_begun_again_too() -> None:
    engine = FakeEngine("mortal", seconds_per_token=0.02, endless=True)
    runtime = make_runtime(
        engines={"ref": engine, "vbon": FakeEngine()}, limits={"running_sequences": 8}
    )
    async with serving(runtime) as (_, client):
        pending = [asyncio.create_task(post(client, "bon")) for _ in range(3)]
        await _until(lambda: runtime.admission.waiting == 16, pending[0])
        await engine.stop()
        answers = await asyncio.gather(*pending)
        assert [one.status_code for one in answers] == [200] * 3, answers[-1].text
