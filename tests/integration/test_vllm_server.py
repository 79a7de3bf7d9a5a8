"""A policy on a real `vllm serve`: what the engine contract does not say of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.runtime.build import build_runtime
from service.settings import ServiceSettings
from vbon.engine import Candidate, Engine, Sampling
from vbon.engine.remote.engine import RemoteEngine
from vbon.engine.remote.server import RemoteOptions
from vbon.errors import CheckpointError, InvalidInputError
from vbon.prompts import Prompt

pytestmark = [pytest.mark.vllm, pytest.mark.train]

PROMPT = Prompt(text="the film was")


async def draw(
    engine: Engine, sampling: Sampling, n: int, prompt: Prompt = PROMPT
) -> list[Candidate]:
    stream = engine.generate(await engine.encode(prompt), sampling, n, "server")
    async with aclosing(stream):
        return sorted([c async for c in stream], key=lambda candidate: candidate.index)


async def test_the_server_serves_lower_priorities_first(vllm_over_http: Engine) -> None:
    """Send an urgent request behind 240 others, of which 16 run at once; it must finish before most.

    The queue is long because the urgent request may arrive late on a busy machine.
    """
    finished: list[str] = []

    async def ask(name: str, count: int, priority: int) -> None:
        sampling = Sampling(max_tokens=40, ignore_eos=True, priority=priority)
        stream = vllm_over_http.generate(ids, sampling, count, name)
        async with aclosing(stream):
            async for _ in stream:
                finished.append(name)

    ids = await vllm_over_http.encode(PROMPT)
    patient = asyncio.create_task(ask("patient", 240, 5))
    while len(finished) < 8:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await ask("urgent", 1, -5)
    rank = finished.index("urgent")
    await patient
    assert len(finished) == 241
    assert rank < 240 - 2 * 16


@pytest.fixture
async def with_own_tokenizer(vllm_server: str, sandbox: Path) -> AsyncGenerator[RemoteEngine, None]:
    options = RemoteOptions(tokenizer=str(sandbox / "policy"))
    engine = RemoteEngine(f"{vllm_server}#ref", options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def test_a_tokenizer_here_does_what_the_servers_does(
    vllm_over_http: Engine, with_own_tokenizer: RemoteEngine
) -> None:
    sampling = Sampling(max_tokens=30, seed=5)
    for text in ("the film was", " a", "the  café\u2028film", "zzz qqq"):
        prompt = Prompt(text=text)
        ids = await with_own_tokenizer.encode(prompt)
        assert ids == await vllm_over_http.encode(prompt)
        here, there = [
            await draw(engine, sampling, 4, prompt)
            for engine in (with_own_tokenizer, vllm_over_http)
        ]
        assert [c.token_ids for c in here] == [c.token_ids for c in there]
        for candidate in here:
            decoded = await with_own_tokenizer.decode(ids, list(candidate.token_ids))
            assert decoded == candidate.text
            assert decoded == await vllm_over_http.decode(ids, list(candidate.token_ids))


async def test_a_tokenizer_here_refuses_what_the_servers_does(
    with_own_tokenizer: RemoteEngine,
) -> None:
    with pytest.raises(InvalidInputError, match="chat template") as refused:
        await with_own_tokenizer.encode(Prompt(messages=({"role": "user", "content": "a"},)))
    assert refused.value.field == "messages"


async def test_a_tokenizer_that_is_not_there(vllm_server: str, tmp_path: Path) -> None:
    engine = RemoteEngine(vllm_server, RemoteOptions(tokenizer=str(tmp_path)))
    with pytest.raises(CheckpointError, match=r"engine\.remote_tokenizer .*cannot be loaded"):
        await engine.start()


async def test_best_of_n_over_the_server(vllm_server: str, sandbox: Path) -> None:
    runtime = build_runtime(
        ServiceSettings(policies={"ref": vllm_server}, reward=str(sandbox / "reward"))
    )
    body = {
        "prompt": "the film was",
        "n": 8,
        "max_tokens": 16,
        "seed": 7,
        "return_candidates": True,
    }
    try:
        await runtime.start()
        transport = httpx.ASGITransport(app=create_app(runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bon = (await client.post("/generate?mode=bon", json=body)).json()
            ref = (await client.post("/generate?mode=ref", json=body)).json()
    finally:
        await runtime.stop()
    assert len(bon["candidates"]) == 8
    assert bon["reward"] == max(candidate["reward"] for candidate in bon["candidates"])
    assert bon["policy"]["revision"] == "remote:ref"
    assert ref["text"] == bon["candidates"][0]["text"]
