"""``vbon distil run`` and the real service together: only training and comparison are stood in for."""

from __future__ import annotations

import asyncio
import shutil
import time
from io import StringIO
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from tests.unit.distil_loop import FakeCommands, by_prompt, prompts
from tests.unit.rolling import BAD, GOOD, Rolling, rolling
from vbon.distil.loop.config import DistilRunConfig
from vbon.distil.loop.run import Loop, Tools
from vbon.distil.loop.service import Service
from vbon.distil.loop.state import ROUNDS


class Bridge(httpx.BaseTransport):
    """Requests of a thread, sent to the application in the event loop."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client, self.events = client, asyncio.get_running_loop()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        asked = self.client.request(request.method, request.url.path, content=request.read())
        answer = asyncio.run_coroutine_threadsafe(asked, self.events).result(20)
        return httpx.Response(answer.status_code, content=answer.content)


def loop_on(
    service: Rolling, word: str, output: StringIO, candidate: dict[str, list[float]]
) -> Loop:
    """A loop that trains checkpoints which say one word, and measures these figures of them."""

    def train(place: str) -> None:
        if place == "vbon begins":
            name = f"{sum(one.startswith('vbon') for one in commands.ran) + 1:04d}"
            shutil.rmtree(service.kept / ROUNDS / name / "checkpoint", ignore_errors=True)
            service.write(name, word)

    commands = FakeCommands(candidate, at=train)
    config = DistilRunConfig(
        dir=service.kept, url="http://test", once=True, min_prompts=30, n=4, poll_s=0.002
    )
    client = httpx.Client(transport=Bridge(service.client), base_url="http://test")
    console = Console(file=output, width=200)
    tools = Tools(command=commands, sleep=lambda _: time.sleep(0.002))
    (service.kept / ROUNDS).mkdir(exist_ok=True)
    return Loop(config, Service(client, console.print), console, tools)


@pytest.fixture(autouse=True)
def _has_an_n(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbon.distil.loop.rounds.takes_n", lambda _: True)  # asks a process


async def told(service: Rolling, word: str, candidate: dict[str, list[float]] | None = None) -> str:
    """Ask until the loop has ended; returns what it said."""
    output = StringIO()
    loop = loop_on(service, word, output, candidate or by_prompt())
    running = asyncio.create_task(asyncio.to_thread(loop.run))
    texts = iter(prompts(3000))
    while not running.done():
        await service.ask(next(texts))
        await asyncio.sleep(0.001)
    await running
    return output.getvalue()


async def test_from_nothing_to_a_checkpoint_that_answers_all_requests(tmp_path: Path) -> None:
    async with rolling(tmp_path) as service:
        said = await told(service, GOOD)
        state = await service.state()
        assert (await service.ask("the end of it"))["routing"]["arm"] == "live"
    assert state["live"] == "0001"
    assert "promote:" in said
    assert "checkpoint 0001: live" in said
    assert state["checkpoints"][0]["decision"]["figures"]["candidate"]["win_rate"]["mean"] == (
        pytest.approx(0.8)
    )
    assert state["training_tokens"] == 1000 + 2 * 16 * 40 * 10


async def test_a_checkpoint_that_passes_the_gate_but_is_worse_live_is_rolled_back(
    tmp_path: Path,
) -> None:
    async with rolling(tmp_path) as service:
        said = await told(service, BAD)
        state = await service.state()
    assert state["live"] is None
    assert "promote:" in said
    assert "checkpoint 0001: rolled back because its win rate is too low" in said


async def test_a_checkpoint_that_the_gate_refuses_is_shown_and_never_answers(
    tmp_path: Path,
) -> None:
    async with rolling(tmp_path) as service:
        said = await told(service, GOOD, by_prompt(win_rate=0.5, kl=0.0))
        state = await service.state()
    assert "refuse:" in said
    assert [one["status"] for one in state["checkpoints"]] == ["refused"]
    assert state["checkpoints"][0]["decision"]["verdict"] == "refuse"
    assert {one["arm"]: one["requests"] > 0 for one in state["arms"]} == {
        "bon": True, "live": False, "next": False,
    }  # fmt: skip
