"""Limits of keys on a loaded server: the real application with room for two slow candidates."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from service.auth.keys import new_key, write_keys
from service.runtime.batching_scorer import BatchingScorer
from service.runtime.runtime import Runtime
from tests.unit.fakes import FakeReward, make_runtime, serving
from tests.unit.virtual_clock import virtually
from vbon.engine.fake import FakeEngine
from vbon.errors import PromptTooLongError
from vbon.prompts import Prompt

clocked = virtually("service", "vbon", "tests.unit")

BODY: dict[str, Any] = {"prompt": "the film was", "max_tokens": 8, "ignore_eos": True}


def keyed(
    tmp_path: Path,
    limits: dict[str, object],
    engine: FakeEngine | None = None,
    **keys: dict[str, int],
) -> tuple[Runtime, dict[str, str]]:
    """A runtime with a slow engine, and tokens by name."""
    pairs = [new_key(name, **their) for name, their in keys.items()]
    file = tmp_path / "keys.jsonl"
    write_keys(file, [key for key, _ in pairs])
    runtime = make_runtime(
        engines={"ref": engine or FakeEngine("slow", seconds_per_token=0.002)},
        auth={"keys_file": str(file)},
        limits=limits,
    )
    return runtime, {key.name: token for key, token in pairs}


async def ask(
    client: httpx.AsyncClient, token: str, mode: str = "ref", **changes: object
) -> httpx.Response:
    return await client.post(
        "/generate",
        params={"mode": mode},
        json=BODY | changes,
        headers={"authorization": f"Bearer {token}"},
    )


@clocked
async def test_one_key_s_flood_does_not_keep_another_out(tmp_path: Path) -> None:
    limits: dict[str, object] = {"running_sequences": 2, "waiting_sequences": 60}
    runtime, tokens = keyed(tmp_path, limits, flood={}, quiet={})
    async with serving(runtime) as (_, client):
        flood = [asyncio.create_task(ask(client, tokens["flood"], "bon", n=2)) for _ in range(40)]
        while runtime.admission.waiting < 30:  # noqa: ASYNC110  (a few turns)
            await asyncio.sleep(0)
        quiet = [await ask(client, tokens["quiet"]) for _ in range(5)]
        still_waiting = runtime.admission.waiting
        answers = await asyncio.gather(*flood)
    assert [response.status_code for response in quiet] == [200] * 5
    assert still_waiting > 0
    statuses = {response.status_code for response in answers}
    assert statuses == {200, 429}
    shed = next(response for response in answers if response.status_code == 429)
    assert 1 <= int(shed.headers["retry-after"]) <= 60
    assert (runtime.admission.running, runtime.admission.waiting) == (0, 0)


@clocked
async def test_a_key_s_own_limits_hold_on_every_route(tmp_path: Path) -> None:
    runtime, tokens = keyed(tmp_path, {}, few={"max_sequences": 4}, slow={"tokens_per_minute": 100})
    async with serving(runtime) as (_, client):
        wide = await ask(client, tokens["few"], "bon", n=5)
        fits = await ask(client, tokens["few"], "bon", n=4)
        batch = await ask(client, tokens["few"], "bon", n=4, prompt=None, prompts=["a", "b", "c"])
        long = await ask(client, tokens["slow"], max_tokens=101)
        most = [await ask(client, tokens["slow"], "bon", n=4, max_tokens=20)]
        most.append(await ask(client, tokens["slow"], max_tokens=100))
        compared = await client.post(
            "/compare",
            json={"prompts": ["the film was"], "modes": ["ref", "bon"], "n": 5, "max_tokens": 2},
            headers={"authorization": f"Bearer {tokens['few']}"},
        )
        completed = await client.post(
            "/v1/completions",
            json={"model": "bon", "prompt": "the film was", "best_of": 5, "max_tokens": 2},
            headers={"authorization": f"Bearer {tokens['few']}"},
        )
    assert (fits.status_code, batch.status_code) == (200, 200)
    for refused, field in ((wide, "n"), (compared, "n"), (completed, "n"), (long, "max_tokens")):
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (422, field), error
    assert [response.status_code for response in most] == [200, 429]
    assert 1 <= int(most[1].headers["retry-after"]) <= 60
    assert "tokens a minute" in most[1].json()["error"]["message"]


@clocked
async def test_rounds_that_were_decoded_before_a_failure_are_used_up(tmp_path: Path) -> None:
    """A failed request of several adaptive rounds is charged for all rounds, not for one."""

    class Fails(FakeReward):
        def score(self, items: Any) -> list[float | None]:
            if sum(self.batches) + len(items) > 30:
                raise RuntimeError("no")
            return super().score(items)

    body = {"min_n": 5, "round_size": 5, "candidate_cost": 0, "max_tokens": 10}
    runtime, tokens = keyed(tmp_path, {}, ann={"tokens_per_minute": 600})
    runtime.reward = BatchingScorer(Fails())
    engine = runtime.policies["ref"]
    async with serving(runtime) as (_, client):
        small = await ask(client, tokens["ann"], "adaptive-bon", n=10, **body)
        decoded = engine.decoded_tokens  # type: ignore[attr-defined]
        failed = await ask(client, tokens["ann"], "adaptive-bon", n=50, **body)
        after = await ask(client, tokens["ann"], max_tokens=50)
        over = await ask(client, tokens["ann"], "adaptive-bon", n=61, **body)
    assert (small.status_code, decoded) == (200, 100)
    assert failed.status_code == 502, failed.text
    assert engine.decoded_tokens - decoded >= 250  # type: ignore[attr-defined]
    assert after.status_code == 429
    assert over.status_code == 422
    assert "61 candidates of up to 10 tokens are 610" in over.json()["error"]["message"]


@clocked
async def test_what_was_not_decoded_is_not_used_up(tmp_path: Path) -> None:
    runtime, tokens = keyed(tmp_path, {}, ann={"tokens_per_minute": 100})
    async with serving(runtime) as (_, client):
        first = await ask(client, tokens["ann"], max_tokens=100, ignore_eos=False)
        used = first.json()["usage"]["generated_tokens"]
        assert 0 < used < 100
        second = await ask(client, tokens["ann"], max_tokens=100 - used)
    assert second.status_code == 200


class Laborious(FakeEngine):
    """An engine whose prompts all take time to encode, and whose prompts of over 99 characters do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[str] = []
        self.at_once = self.most_at_once = 0

    def is_quick(self, prompt: Prompt) -> bool:
        return False

    async def encode(self, prompt: Prompt) -> list[int]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.002)
        self.at_once -= 1
        self.encoded.append(prompt.text or "")
        if prompt.size > 99:
            raise PromptTooLongError(prompt_tokens=prompt.size, max_tokens=1, limit=99)
        return await super().encode(prompt)


async def test_one_key_s_long_prompts_do_not_keep_another_s_waiting(tmp_path: Path) -> None:
    engine = Laborious()
    runtime, tokens = keyed(tmp_path, {}, engine, flood={}, quiet={})
    async with serving(runtime) as (_, client):
        flood = [
            asyncio.create_task(ask(client, tokens["flood"], prompt=f"flood {i:04}"))
            for i in range(30)
        ]
        while len(engine.encoded) < 2:  # noqa: ASYNC110  (a few turns)
            await asyncio.sleep(0)
        before = len(engine.encoded)
        assert (await ask(client, tokens["quiet"], prompt="quiet")).status_code == 200
        await asyncio.gather(*flood)
    # The one that was being encoded, and at most one more.
    assert engine.encoded.index("quiet") - before <= 2
    assert engine.most_at_once == 1


async def test_prompts_that_wait_for_the_tokenizer_are_bounded(tmp_path: Path) -> None:
    runtime, tokens = keyed(tmp_path, {}, Laborious(), flood={}, quiet={})
    async with serving(runtime) as (_, client):
        answers = await asyncio.gather(*(ask(client, tokens["flood"]) for _ in range(120)))
    statuses = [response.status_code for response in answers]
    assert set(statuses) == {200, 429}
    assert 20 <= statuses.count(200) <= 66
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "long prompts" in refused.json()["error"]["message"]


@clocked  # or a slow machine gives the key tokens back meanwhile
async def test_prompts_that_are_encoded_in_vain_are_charged_to_their_key(tmp_path: Path) -> None:
    engine = Laborious()
    runtime, tokens = keyed(
        tmp_path, {}, engine, looping={"tokens_per_minute": 2000}, other={"tokens_per_minute": 2000}
    )
    async with serving(runtime) as (_, client):
        looping = [await ask(client, tokens["looping"], prompt="x" * 5000) for _ in range(6)]
        tried = len(engine.encoded)
        other = await ask(client, tokens["other"])
    assert [response.status_code for response in looping] == [422, 429, 429, 429, 429, 429]
    assert looping[0].json()["error"]["type"] == "prompt_too_long"
    assert 1 <= int(looping[1].headers["retry-after"]) <= 60
    assert (tried, other.status_code) == (1, 200)
