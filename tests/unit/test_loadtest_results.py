"""Reports, comparisons and the command line of the load test."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from service.loadtest.cautions import cell_warnings
from service.loadtest.compare import compare_runs
from service.loadtest.report import cells_csv, html_page
from service.loadtest.schema import LoadTestResult, Round
from tests.unit.slow_server import SlowServer, listening
from tests.unit.test_loadtest import measure

HOSTILE = '</script><script>alert(1)</script><img src="http://evil.example/x.png" onerror=alert(2)>{{main}}'
ROOT = Path(__file__).resolve().parents[2]
TRAINING = {
    "objective": "vbon",
    "cost": {"training_seconds": 36.0, "processes": 1},
    "heldout": {
        key: {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "count": 3}
        for key, mean in (("reward", 4.0), ("win_rate", 0.9), ("kl_nats", 1.9))
    },
}


async def whole_run(out: Path, **changes: Any) -> LoadTestResult:
    """Every kind of result, in a second or two."""
    server = SlowServer(
        first_s=0.005, tokens=2, gap_s=0.001, training=TRAINING,
        rewards={"ref": 0.5, "vbon": 1.6, "bon": 0.0}, text=HOSTILE,
    )  # fmt: skip
    async with listening(server):
        return await measure(
            server, out, **{"modes": ["ref", "bon", "vbon"], "n": [2, 4], "concurrency": [1, 2],
            "rate": [20], "duration_s": 0.15, "warmup_s": 0.0, "rounds": 2, "quality_prompts": 3,
            "slo": ["e2e:1000"], **changes}
        )  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> LoadTestResult:
    return asyncio.run(whole_run(tmp_path_factory.mktemp("run"), currency='E"<b>'))


def test_the_result_survives_json_and_fits_its_schema(result: LoadTestResult) -> None:
    text = result.model_dump_json()
    assert LoadTestResult.model_validate_json(text) == result
    assert LoadTestResult.model_json_schema()["properties"].keys() == json.loads(text).keys()
    assert result.schema_version == "1.0"


def test_the_break_even_is_that_of_the_card(result: LoadTestResult) -> None:
    """36 s at 1 an hour are 0.01. Best-of-4 is worth 3, one sample 1.5, best-of-2 7/3."""
    pair = next(one for one in result.break_even if one.sampled == "bon (N=4)")
    costs = {cost.variant: cost.per_1000 / 1000 for cost in result.costs}
    assert pair.training_cost == pytest.approx(0.01)
    assert pair.reward_given_up is not None
    assert pair.reward_given_up.mean == pytest.approx(3 - 1.6)
    assert pair.equal_n == pytest.approx(1 + (1.6 - 1.5) / (7 / 3 - 1.5))
    saved = costs["bon (N=4)"] - costs["vbon"]
    if saved > 0:
        assert pair.requests == pytest.approx(0.01 / saved)
    else:
        assert pair.requests is None


def test_the_page_loads_nothing_and_escapes_everything(result: LoadTestResult) -> None:
    texts = {"decision": [HOSTILE, HOSTILE], "warnings": [HOSTILE]}
    page = html_page(result.model_copy(update=texts))
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<script>alert" not in page
    assert "onerror=alert(2)>" not in markup
    assert "<b>" not in markup
    assert "&lt;script&gt;alert(1)" in markup
    assert "{{main}}" in markup  # a slot in a text stays text
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?(?:https?:)?//""", markup)
    assert not re.search(r"@import|url\(", markup)
    assert "default-src 'none'" in page
    scripts = re.findall(r"<script[^>]*>", page)
    assert not any("src" in script for script in scripts)


def test_a_block_too_short_for_an_answer_is_told(result: LoadTestResult) -> None:
    cell = result.cells[0].model_copy(update={"client_cpu": 0.0, "errors": {}})
    assert cell_warnings(cell) == []
    told = cell_warnings(cell.model_copy(update={"e2e_ms": None}))
    assert len(told) == 1
    assert "longer than an answer takes" in told[0]
    assert cell.e2e_ms is not None
    block_s = cell.e2e_ms.p50 / 1e3
    assert cell_warnings(cell, 3 * block_s) == []
    (told,) = cell_warnings(cell, 1.5 * block_s)
    assert "before all is under way" in told


def test_the_page_has_every_figure_and_the_decision_first(result: LoadTestResult) -> None:
    page = html_page(result)
    assert page.count('class="plotly-graph-div"') == 6
    main = page[page.index("<main>") :]
    assert main.index('class="decision"') < main.index("<section>")
    assert "sha256:vbon" in main
    assert "--burstiness" in main


def test_a_page_of_little_has_no_empty_parts(result: LoadTestResult) -> None:
    bare = result.model_copy(
        update={"quality": [], "curve": [], "break_even": [], "examples": [], "costs": []}
    )
    page = html_page(bare)
    assert page.count('class="plotly-graph-div"') == 1
    assert "Break-even</h3>" not in page


async def test_no_password_of_the_store_is_sent_around(tmp_path: Path) -> None:
    store = "postgresql+psycopg://user:0pen-sesame@host:5432/runs"
    server = SlowServer(first_s=0.001, tokens=1)
    async with listening(server):
        result = await measure(server, tmp_path, store=store, duration_s=0.1, warmup_s=0)
    assert result.settings["store"] == "postgresql+psycopg://user:***@host:5432/runs"
    assert "0pen-sesame" not in html_page(result)


def test_csv_has_a_line_a_cell(result: LoadTestResult) -> None:
    rows = list(csv.DictReader(io.StringIO(cells_csv(result))))
    assert [row["variant"] for row in rows] == [cell.variant for cell in result.cells]
    assert result.cells[0].e2e_ms is not None
    assert float(rows[0]["e2e_ms.p95"]) == result.cells[0].e2e_ms.p95


def faster(result: LoadTestResult, factor: float, rounds: int, gain: float = 0.0) -> LoadTestResult:
    """The same run with made-up rounds: noise of some percent around a speed, rewards moved."""
    changed = result.model_copy(deep=True)
    for cell in changed.cells:
        cell.rounds = [
            Round(round=i, requests=9, requests_per_s=10 * factor * (1 + 0.01 * ((7 * i) % 5)),
                  returned_tokens_per_s=1, p50_e2e_ms=100 / factor * (1 + 0.01 * ((3 * i) % 5)),
                  p95_e2e_ms=150 / factor * (1 + 0.01 * (i % 5)))
            for i in range(rounds)
        ]  # fmt: skip
    for one in changed.quality:
        one.prompt_rewards = {str(i): i + gain * (1 + 0.1 * (i % 3)) for i in range(8)}
    return changed


def test_compare_says_different_same_and_too_few(result: LoadTestResult) -> None:
    base = faster(result, 1.0, rounds=5)
    same = compare_runs(base, faster(result, 1.0, rounds=6))
    assert same.statement.startswith("No difference beyond chance: 0 of")
    assert not same.differs
    assert not same.worse
    slower = compare_runs(base, faster(result, 0.8, rounds=5, gain=-1.0))
    assert slower.statement.startswith("The runs differ")
    assert slower.statement.endswith("B is worse.")
    assert slower.worse
    speed = next(one for one in slower.differences if one.measure == "requests/s")
    assert speed.change == pytest.approx(0.8)
    assert speed.p == pytest.approx(2 / 252)
    assert {one.verdict for one in slower.differences} == {"worse"}
    better = compare_runs(base, faster(result, 1.25, rounds=5, gain=1.0))
    assert {one.verdict for one in better.differences} == {"better"}
    few = compare_runs(faster(result, 1.0, 3), faster(result, 0.5, 3))
    assert {d.verdict for d in few.differences if d.relative} == {"too few rounds"}


def test_rewards_are_compared_on_the_same_prompts_only(result: LoadTestResult) -> None:
    base, other = faster(result, 1.0, 5), faster(result, 1.0, 5, gain=1.0)
    assert any(one.measure == "mean reward" for one in compare_runs(base, other).differences)
    moved = other.model_copy(update={"settings": other.settings | {"prompts": "elsewhere.jsonl"}})
    found = compare_runs(base, moved)
    assert any(one.measure == "mean reward" for one in found.differences)
    assert found.settings_changed == {}
    changed = moved.model_copy(update={"prompts_digest": "other"})
    found = compare_runs(base, changed)
    assert not any(one.measure == "mean reward" for one in found.differences)
    other.settings["prompt_words"] = "20"
    other.prompts_digest = None  # of a version that did not note it
    found = compare_runs(base, other)
    assert not any(one.measure == "mean reward" for one in found.differences)
    assert found.settings_changed == {"prompt_words": (None, "20")}


async def command(*arguments: str, cwd: Path, interrupt_after: str = "") -> tuple[int, str]:
    """The real command line; with ``interrupt_after``, Ctrl-C once that was printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service.loadtest", *arguments,
        cwd=cwd, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    seen = ""
    while line := await process.stdout.readline():
        seen += line.decode()
        if interrupt_after and interrupt_after in seen:
            process.send_signal(signal.SIGINT)
            interrupt_after = ""
    return await process.wait(), seen


FAST = ("--quality-prompts", "2", "--quality-samples", "1", "--warmup-s", "0", "--concurrency", "2")


async def test_the_command_measures_keeps_tags_shows_and_compares(tmp_path: Path) -> None:
    server = SlowServer(first_s=0.005, tokens=1, training=TRAINING)
    async with listening(server):
        for out in ("a", "b"):
            status, said = await command(
                "--url", server.url, "--out", out, "--rounds", "4", "--duration-s", "0.2", "--n", "4",
                "--tag", f"run-{out}", *FAST, cwd=tmp_path,
            )  # fmt: skip
            assert status == 0, said
    assert "Reward given up" in said
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "plan.json", "journal.jsonl", "result.json", "cells.csv", "report.html"
    }  # fmt: skip
    status, said = await command("list", cwd=tmp_path)
    assert status == 0
    assert "run-a" in said
    assert "run-b" in said
    status, said = await command("tag", "run-a", "baseline", cwd=tmp_path)
    assert (status, said.split(": ")[1].strip()) == (0, "baseline, run-a")
    status, said = await command("show", "baseline", "--html", "again.html", cwd=tmp_path)
    assert status == 0
    assert (tmp_path / "again.html").read_text().startswith("<!doctype html>")
    for names in (("a", "b"), ("run-a", "run-b"), ("a/result.json", "run-b")):
        status, said = await command("compare", *names, "--json", "c.json", cwd=tmp_path)
        assert status == 0, said
    assert json.loads((tmp_path / "c.json").read_text())["differences"]
    # From the journal alone, as after a kill.
    before = json.loads((tmp_path / "a/result.json").read_text())
    (tmp_path / "a/result.json").unlink()
    status, said = await command("report", "a", cwd=tmp_path)
    assert status == 0, said
    after = json.loads((tmp_path / "a/result.json").read_text())
    for key in ("id", "cells", "quality", "break_even", "decision"):
        assert after[key] == before[key]


async def test_ctrl_c_reports_what_was_measured_and_the_run_goes_on(tmp_path: Path) -> None:
    server = SlowServer(first_s=0.005, tokens=1)
    flags = ("--out", "a", "--modes", "ref", "--rounds", "3", "--duration-s", "1.5", *FAST)
    async with listening(server):
        status, said = await command(
            "--url", server.url, *flags, cwd=tmp_path, interrupt_after="in flight, round 0: "
        )
        assert status == 130, said
        found = json.loads((tmp_path / "a/result.json").read_text())
        assert (found["complete"], found["blocks_done"], found["blocks_planned"]) == (False, 1, 3)
        assert "interrupted: 1 of 3 blocks" in (tmp_path / "a/report.html").read_text()
        status, said = await command("--url", server.url, *flags, cwd=tmp_path)
    assert status == 0, said
    assert "continuing: 1 of 3 blocks" in said
    assert json.loads((tmp_path / "a/result.json").read_text())["complete"]
    with sqlite3.connect(tmp_path / "bestofn-runs.db") as connection:
        assert connection.execute("select count(*) from run").fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--url", "http://127.0.0.1:1"], 1, "is not ready: not reachable"),
        (["--slo", "nonsense"], 2, "KIND:MS"),
        (["--speed", "9"], 2, "--speed"),
        (["compare", "nothing", "nothing"], 1, "no run 'nothing'"),
        (["report", "."], 1, "holds no load test"),
        (["schema"], 0, '"schema_version"'),
        (["--help"], 0, "Exit status"),
        (["run", "--help"], 0, "--price-per-hour"),
    ],
)
async def test_exit_status_and_words(
    tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    found, said = await command(*arguments, cwd=tmp_path)
    assert found == status, said
    assert words in said
