"""The comparison client: waiting, refusing, and what its tables say."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import httpx
import pytest
from rich.console import Console

from service.client import (
    ServerError,
    answers_table,
    comparison_table,
    run_reload,
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


@pytest.mark.parametrize(
    ("options", "sent", "told"),
    [
        ({}, {}, "(loaded in 2.0 s, the old one free after 1.0 s)"),
        (
            {"in_place": True, "in_flight": "keep"},
            {"in_place": True, "in_flight": "keep"},
            "(checked in 2.0 s, weights changed in 1.0 s)",
        ),
    ],
)
def test_a_reload_says_what_was_done(
    options: dict[str, Any],
    sent: dict[str, Any],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        times = {"load_s": 2.0, "drain_s": 1.0, "in_place": bool(options)}
        return httpx.Response(200, json={"models": ["vbon"], "before": "a", "now": "b", **times})

    client = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
    monkeypatch.setattr("service.client._client", lambda _: client)
    run_reload("http://test", "vbon", **options)
    assert bodies == [{"model": "vbon", **sent}]
    shown = " ".join(capsys.readouterr().out.split())
    assert shown == f"vbon: b is served in the place of a {told}"
