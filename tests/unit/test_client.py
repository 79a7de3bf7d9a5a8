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

from service.client import ServerError, run_reload, wait_until_ready
from service.comparison import print_comparison, summary_table, verdict
from tests.unit.fakes import FakeReward, make_runtime, serving


async def test_tables_show_both_sides_and_take_model_text_literally() -> None:
    prompts = ["[bold]not markup[/bold]", "b"]
    async with serving(make_runtime(gold=FakeReward())) as (_, client):
        body = {"prompts": prompts, "n": 4, "seed": 1, "repeats": 2, "max_tokens": 12}
        result = (await client.post("/compare", json=body)).json()
    text = _printed([result], full=True)
    for words in ("bon (N=4)", "vbon", "win rate", "gold", "idle engine", "[bold]not markup[/bold]",
                  "[95% interval over prompts]", "against"):  # fmt: skip
        assert words in text
    bon = next(mode for mode in result["modes"] if mode["mode"] == "bon")
    assert f"{bon['reward']['mean']:.2f} [" in text


def _printed(results: list[dict[str, Any]], *, full: bool) -> str:
    console = Console(file=io.StringIO(), width=150)
    print_comparison(console, results, full=full)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


async def test_the_verdict_and_one_table_come_first() -> None:
    async with serving(make_runtime(gold=FakeReward())) as (_, client):
        body = {"prompts": ["[bold]a[/bold]", "b"], "n": 4, "seed": 1, "max_tokens": 12}
        results = [
            (await client.post("/compare", json=body | {"concurrency": level})).json()
            for level in (1, 2)
        ]
    lines = _printed(results, full=False).splitlines()
    blank = lines.index("")
    assert " ".join(lines[:blank]).split() == " ".join(verdict(results)).split()
    assert len(verdict(results)) == 3
    assert "".join(lines).count("\u2521") == 1  # the line below a table's head
    assert "[bold]" not in "".join(lines)
    table = summary_table(results)
    assert [row[0] for row in table.rows] == ["ref", "vbon", "bon (N=4)"]
    assert "p95 at 2, ms" in table.columns
    assert "p50 at 1, ms" in table.columns


def _mode(
    name: str, n: int, policy: str, rate: float, p50: float, won: Any = None
) -> dict[str, Any]:
    interval = (
        None if won is None else {"mean": won, "low": won - 0.1, "high": won + 0.1, "count": 9}
    )
    return {
        "mode": name, "n": n, "policy": {"name": policy}, "requests_per_s": {"median": rate},
        "e2e_ms": {"p50": p50}, "win_rate": interval, "gold_win_rate": interval,
    }  # fmt: skip


def _result(
    *,
    concurrency: int,
    difference: tuple[float, float, float] | None,
    gold: bool,
    first: str = "bon",
) -> dict[str, Any]:
    """A comparison of ref, bon and vbon; ``difference`` is bon's reward minus vbon's, or the reverse."""
    found = (
        None if difference is None else dict(zip(("mean", "low", "high"), difference, strict=True))
    )
    measured = None if found is None else {**found, "count": 9}
    names = ("bon", "vbon") if first == "bon" else ("vbon", "bon")
    pair = {
        "mode": names[0], "against": names[1], "reward_difference": None if gold else measured,
        "gold_difference": measured if gold else None,
    }  # fmt: skip
    return {
        "concurrency": concurrency, "baseline": "ref", "head_to_head": [pair],
        "modes": [
            _mode("ref", 1, "ref", 40.0, 10.0),
            _mode("bon", 8, "ref", 5.0, 30.0, 0.9),
            _mode("vbon", 1, "vbon", 20.0, 12.0, 0.8),
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("difference", "gold", "first", "words", "reward"),
    [
        ((0.5, 0.25, 0.75), False, "bon", "and has less reward",
         "Reward of vbon: worse by 0.50 [0.25, 0.75] than bon (N=8) (95% interval, 9 prompts)"),
        ((0.5, 0.25, 0.75), True, "vbon", "and has more gold reward",
         "Gold reward of vbon: better by 0.50 [0.25, 0.75] than bon (N=8) (95% interval, 9 prompts)"),
        ((0.5, -0.25, 0.75), True, "bon", "and their gold rewards are too close to call",
         "Gold reward of vbon: between 0.75 worse and 0.25 better than bon (N=8) (9 prompts): too close to "
         "call"),
    ],
)  # fmt: skip
def test_the_verdict_is_of_the_checkpoint_against_the_largest_n(
    difference: tuple[float, float, float], gold: bool, first: str, words: str, reward: str
) -> None:
    loaded = _result(concurrency=64, difference=difference, gold=gold, first=first)
    idle = _result(concurrency=1, difference=difference, gold=gold, first=first)
    assert verdict([idle, loaded]) == [
        f"vbon answers 4 times as many requests/s as bon (N=8) at 64 in flight, {words}.",
        f"{reward}; win rate against ref 0.80 [0.70, 0.90] instead of 0.90 [0.80, 1.00].",
        "A request by itself takes 12 ms instead of 30 ms (p50). `vbon loadtest run --modes vbon,bon,ref "
        "--n 8` measures after how many answers fine-tuning pays.",
    ]


@pytest.mark.parametrize("baseline", ["vbon", "bon", "ref"])
def test_the_verdict_is_the_same_whichever_mode_is_the_baseline(baseline: str) -> None:
    """Without ref, the mode that is named first is the baseline: ``vbon compare --modes vbon,bon``."""
    result = _result(concurrency=8, difference=(0.5, 0.25, 0.75), gold=False)
    modes = [
        {**mode, "win_rate": None, "gold_win_rate": None} if mode["mode"] == baseline else mode
        for mode in result["modes"]
        if baseline == "ref" or mode["mode"] != "ref"
    ]
    said = verdict([{**result, "baseline": baseline, "modes": modes}])
    assert said[0].startswith("vbon answers 4 times as many requests/s as bon (N=8)")
    assert said[-1].startswith("`vbon loadtest run --modes vbon,bon,ref --n 8`")
    rates = {
        "vbon": "",  # that of bon is not its own
        "bon": "; win rate against bon 0.80 [0.70, 0.90]",
        "ref": "; win rate against ref 0.80 [0.70, 0.90] instead of 0.90 [0.80, 1.00]",
    }
    assert said[1].removesuffix(".").endswith(f"9 prompts){rates[baseline]}")


def test_a_verdict_without_rewards_or_without_a_checkpoint_says_so() -> None:
    unscored = _result(concurrency=8, difference=None, gold=False)
    assert verdict([unscored])[0].endswith("at 8 in flight, and their rewards were not measured.")
    two = {**unscored, "modes": unscored["modes"][:2]}
    said = verdict([two])
    assert said[0].startswith(
        "bon (N=8) answers 0.125 times as many requests/s as ref at 8 in flight"
    )
    assert said[-1].startswith("Compare a fine-tuned checkpoint with")
    (alone,) = verdict([{**unscored, "modes": unscored["modes"][:1]}])
    assert alone.startswith("Only one mode was asked")


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
