"""The load test's command line: whole runs against a server, shown, compared, interrupted and continued."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from tests.unit.slow_server import SlowServer, listening
from tests.unit.test_loadtest_results import TRAINING, command

FAST = ("--quality-prompts", "2", "--quality-samples", "1", "--warmup-s", "0", "--concurrency", "2")


async def test_the_command_measures_keeps_tags_shows_and_compares(tmp_path: Path) -> None:
    server = SlowServer(first_s=0.005, tokens=1, training=TRAINING)
    async with listening(server):
        for out in ("a", "b"):
            status, said = await command(
                "--url", server.url, "--out", out, "--rounds", "4", "--duration-s", "0.1", "--n", "4",
                "--tag", f"run-{out}", *FAST, cwd=tmp_path,
            )  # fmt: skip
            assert status == 0, said
    assert "Each mode in a line" in said
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "plan.json", "journal.jsonl", "result.json", "cells.csv", "report.html"
    }  # fmt: skip
    status, said = await command("list", cwd=tmp_path)
    assert status == 0
    assert "run-a" in said
    assert "run-b" in said
    status, said = await command("tag", "run-a", "baseline", cwd=tmp_path)
    assert (status, said.split(": ")[1].strip()) == (0, "baseline, run-a")
    status, said = await command("show", "baseline", "--full", "--html", "again.html", cwd=tmp_path)
    assert status == 0
    assert "Reward given up" in said
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
    with sqlite3.connect(tmp_path / "vbon-runs.db") as connection:
        assert connection.execute("select count(*) from run").fetchone() == (1,)
    connection.close()
