"""The comparison client: waiting, refusing, and what its tables say."""

from __future__ import annotations

import io
import subprocess
import sys

import httpx
import pytest
from rich.console import Console

from service.client import (
    ServerError,
    answers_table,
    comparison_table,
    wait_until_ready,
)
from tests.unit.fakes import FakeReward, make_runtime, serving


async def test_tables_show_both_sides_and_take_model_text_literally() -> None:
    prompts = ["[bold]not markup[/bold]", "b"]
    async with serving(make_runtime(gold=FakeReward())) as (_, client):
        body = {"prompts": prompts, "n": 4, "seed": 1, "repeats": 2, "max_tokens": 12}
        result = (await client.post("/compare", json=body)).json()
    console = Console(file=io.StringIO(), width=150)
    console.print(comparison_table(result))
    console.print(answers_table(result))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("bon (N=4)", "vbon", "win rate", "gold", "idle engine", "[bold]not markup[/bold]",
                  "[95% interval over prompts]", "against"):  # fmt: skip
        assert words in text
    bon = next(mode for mode in result["modes"] if mode["mode"] == "bon")
    assert f"{bon['reward']['mean']:.2f} [" in text


def test_waiting_ends_with_the_servers_words() -> None:
    transport = httpx.MockTransport(
        lambda _: httpx.Response(503, json={"error": {"message": "models are loading"}})
    )
    with (
        httpx.Client(base_url="http://x", transport=transport) as client,
        pytest.raises(ServerError, match="models are loading"),
    ):
        wait_until_ready(client, 0.0, Console(file=io.StringIO()))


def test_waiting_ends_when_the_server_process_has() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(503, json={}))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with (
        httpx.Client(base_url="http://x", transport=transport) as client,
        pytest.raises(ServerError, match="has ended"),
    ):
        wait_until_ready(client, 60.0, Console(file=io.StringIO()), while_pid=ended.pid)
