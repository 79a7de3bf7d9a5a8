"""Requests that are begun again once their engine is back: what they are charged, and what they tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.auth.keys import new_key, write_keys
from tests.unit.fakes import make_runtime, serving
from tests.unit.test_api import _until, post
from tests.unit.virtual_clock import virtually
from vbon.engine.drawn_by import note_weights
from vbon.engine.fake import FakeEngine
from vbon.engine.protocol import Candidate
from vbon.errors import CheckpointError

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
    class Gone(FakeEngine):
        async def start(self) -> None:
            if self.decoded_tokens:
                raise CheckpointError("gone")
            await super().start()

    engine = Gone("mortal", seconds_per_token=0.02, endless=True)
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
