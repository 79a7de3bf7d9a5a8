"""``/loadtests``: limits, files, and children that end without measuring; real ones: tests/integration."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.auth.keys import new_key, write_keys
from service.context.caller import ANYBODY
from service.hosted_loadtests import runs as loadtest_runs
from service.hosted_loadtests.files import delete_oldest, write_inputs
from service.hosted_loadtests.requests import planned_seconds, settings_of
from service.hosted_loadtests.runs import LoadTestRuns, Run
from service.loadtest.config import LoadTestSettings
from service.loadtest.journal import Journal
from service.loadtest.load import supervised
from service.loadtest.load.prompts import load_prompts
from service.loadtest.load.supervised import Reporting, RunningBlock
from service.loadtest.observation import Observation
from service.schemas.loadtests import LoadTestRequest
from service.schemas.prompts import ChatPrompt, to_prompt
from service.store import add_run, open_store
from service.store.async_store import AsyncStore
from tests.unit.fakes import make_runtime, serving
from tests.unit.test_loadtest import Quiet
from vbon.config import load_settings
from vbon.errors import ExportError

MARKUP = "<script>alert(1)</script>"
SHORT: dict[str, Any] = {
    "n": [2],
    "concurrency": [2],
    "rounds": 1,
    "duration_s": 0.3,
    "warmup_s": 0.1,
    "max_tokens": 8,
    "prompts": [MARKUP, "the film was"],
    "quality_samples": 1,
    "tags": [MARKUP],
}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"modes": ["no"]}, "modes", "not configured"),
        ({"modes": ["bon@no"]}, "modes", "not configured"),
        ({"modes": [MARKUP]}, "modes.0", "pattern"),
        ({"baseline": "no"}, "baseline", "not configured"),
        ({"n": [129]}, "n", "at most 128"),
        ({"n": [0]}, "n.0", "greater than or equal to 1"),
        ({"concurrency": [1025]}, "concurrency", "at most 1024"),
        ({"rate": [-1]}, "rate.0", "greater than 0"),
        ({"duration_s": 61}, "duration_s", "less than or equal to 60"),
        ({"duration_s": 60, "rounds": 20}, "duration_s", "limits.loadtest_max_s"),
        ({"duration_s": 1, "requests": 5}, "body", "not both"),
        ({"requests": 20_000}, "requests", "10000"),
        ({"max_tokens": 10**6}, "max_tokens", "at most 4096"),
        ({"prompts": ["x"] * 129}, "prompts", "at most 128"),
        ({"prompts": [""]}, "prompts.0", "at least 1 character"),
        ({"slo_ms": {"e3e": 1}}, "slo_ms.e3e", "e2e"),
        ({"tags": ["x" * 65]}, "tags.0", "64"),
        ({"url": "http://169.254.169.254"}, "url", "no such field"),
        ({"out": "/etc"}, "out", "no such field"),
    ],
)
async def test_what_is_out_of_bounds_is_refused_with_field_and_limit(
    changes: dict[str, Any], field: str, words: str
) -> None:
    async with serving(make_runtime(store="none")) as (app, client):
        response = await client.post("/loadtests", json=SHORT | changes)
        assert app.state.load_test_runs.current is None
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, field)
    assert words in error["message"]


async def test_it_may_be_switched_off_and_other_sites_may_not_ask() -> None:
    async with serving(make_runtime(store="none", limits={"loadtest_max_s": 0})) as (_, client):
        off = await client.post("/loadtests", json=SHORT)
    async with serving(make_runtime(store="none")) as (_, client):
        foreign = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
        asked = [
            await client.post("/loadtests", json=SHORT, headers=foreign),
            await client.delete("/loadtests/0123456789ab", headers=foreign),
            await client.post("/loadtests/0123456789ab/report-link", headers=foreign),
        ]
    assert off.status_code == 403
    assert "loadtest_max_s" in off.json()["error"]["message"]
    assert [response.status_code for response in asked] == [403, 403, 403]


async def test_what_is_not_there_is_404(tmp_path: Path) -> None:
    paths = [
        "/loadtests/0123456789ab",
        "/loadtests/0123456789ab/result",
        "/loadtests/0123456789ab/report",
        "/page/reports/guess",
        "/loadtests/0123456789ab/comparison?against=0123456789ab",
    ]
    for store in ("none", str(tmp_path / "s.db")):
        async with serving(make_runtime(store=store)) as (_, client):
            found = [await client.get(path) for path in paths]
            found.append(await client.delete("/loadtests/0123456789ab"))
            odd = await client.get("/loadtests/%2e%2e%2fetc/result")
            listed = (await client.get("/loadtests")).json()
        assert [response.status_code for response in found] == [404] * 6
        assert odd.status_code in (404, 422)
        assert (listed["current"], listed["runs"]) == (None, [])
        assert listed["kept"] is (store != "none")


async def test_a_run_of_another_version_in_the_store_is_404_that_says_so(tmp_path: Path) -> None:
    run = "0123456789ab"
    old = {
        "id": run,
        "created": "2026-01-01T10:00:00+00:00",
        "schema_version": "0.9",
        "decision": [],
        "server": {"url": "http://host"},
    }
    store = open_store(str(tmp_path / "s.db"))
    add_run(store, old)
    store.close()
    async with serving(make_runtime(store=str(tmp_path / "s.db"))) as (_, client):
        path = f"/loadtests/{run}"
        answers = [
            await client.get(path),
            await client.get(f"{path}/report"),
            await client.get(f"{path}/comparison", params={"against": run}),
            await client.post(f"{path}/report-link"),
        ]
        result = await client.get(f"{path}/result")
        listed = (await client.get("/loadtests")).json()["runs"]
    assert [answer.status_code for answer in answers] == [404] * 4
    assert all("another version" in answer.json()["error"]["message"] for answer in answers)
    assert result.json() == old
    assert [one["id"] for one in listed] == [run]


STORED = "0123456789ab"


def stored_run() -> dict[str, Any]:
    return {
        "id": STORED,
        "created": "2026-01-01T10:00:00+00:00",
        "schema_version": "1.0",
        "decision": ["yes"],
        "server": {"url": "http://host"},
    }


def put_into(store: str) -> None:
    opened = open_store(store)
    add_run(opened, stored_run(), ["old"])
    opened.close()


async def test_a_stored_run_is_named_tagged_and_deleted(tmp_path: Path) -> None:
    put_into(str(tmp_path / "s.db"))
    path = f"/loadtests/{STORED}"
    async with serving(make_runtime(store=str(tmp_path / "s.db"))) as (_, client):
        named = await client.patch(path, json={"name": MARKUP})
        tagged = await client.patch(path, json={"tags": ["new"]})
        (listed,) = (await client.get("/loadtests")).json()["runs"]
        refused_words = [
            await client.patch(path, json=body)
            for body in ({"name": "x" * 81}, {"name": "a\0b"}, {"tags": ["  "]}, {"tags": ["a\0b"]})
        ]
        blank = await client.patch(path, json={"name": "  ", "tags": [" spaced "]})
        elsewhere = {"sec-fetch-site": "cross-site"}
        refused = [
            await client.patch(path, json={"name": "x"}, headers=elsewhere),
            await client.delete(f"{path}/result", headers=elsewhere),
        ]
        deleted = await client.delete(f"{path}/result")
        gone = [
            await client.delete(f"{path}/result"),
            await client.patch(path, json={"name": "x"}),
            await client.get(path),
        ]
        left = (await client.get("/loadtests")).json()["runs"]
    assert (named.json()["name"], named.json()["tags"]) == (MARKUP, ["old"])
    assert (tagged.json()["name"], tagged.json()["tags"]) == (MARKUP, ["new"])
    assert listed == tagged.json()
    assert [answer.status_code for answer in refused_words] == [422] * 4
    assert [answer.json()["error"]["param"].split(".")[0] for answer in refused_words] == [
        "name", "name", "tags", "tags",
    ]  # fmt: skip
    assert (blank.json()["name"], blank.json()["tags"]) == (None, ["spaced"])
    assert [answer.status_code for answer in refused] == [403, 403]
    assert deleted.status_code == 204
    assert [answer.status_code for answer in gone] == [404] * 3
    assert left == []


async def test_only_an_admin_names_and_deletes(tmp_path: Path) -> None:
    put_into(str(tmp_path / "s.db"))
    user, admin = new_key("ann"), new_key("root", role="admin")
    write_keys(tmp_path / "keys.jsonl", [user[0], admin[0]])
    runtime = make_runtime(
        store=str(tmp_path / "s.db"), auth={"keys_file": str(tmp_path / "keys.jsonl")}
    )
    statuses = []
    async with serving(runtime) as (_, client):
        for _, token in (user, admin):
            headers = {"Authorization": f"Bearer {token}"}
            path = f"/loadtests/{STORED}"
            statuses.append((await client.patch(path, json={}, headers=headers)).status_code)
            statuses.append((await client.delete(f"{path}/result", headers=headers)).status_code)
    assert statuses == [403, 403, 200, 204]


async def test_a_run_that_runs_is_not_deleted_and_shows_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = "import sys; sys.stdin.read()"
    monkeypatch.setattr(loadtest_runs, "_COMMAND", (sys.executable, "-c", waits))
    async with serving(make_runtime(store="none")) as (app, client):
        runs: LoadTestRuns = app.state.load_test_runs
        run = await start_one(runs)
        running = (await client.get(f"/loadtests/{run.id}")).json()
        refused = await client.delete(f"/loadtests/{run.id}/result")
        runs.stop(run, ANYBODY)
        assert run.watching is not None
        await asyncio.wait_for(run.watching, 60)
        ended = (await client.get("/loadtests")).json()["current"]
        deleted = await client.delete(f"/loadtests/{run.id}/result")
        current = (await client.get("/loadtests")).json()["current"]
    assert (refused.status_code, refused.json()["error"]["type"]) == (409, "busy")
    assert "stop it first" in refused.json()["error"]["message"]
    engine = {"alive": True, "sequences": 0, "restarts": 0}
    assert running["server"] == {
        "running": 0,
        "waiting": 0,
        "scores_waiting": 0,
        "engines": [{"policy": "ref", **engine}, {"policy": "vbon", **engine}],
    }
    assert ended["server"] is None
    assert deleted.status_code == 204
    assert current is None
    assert not run.directory.exists()


def test_a_running_block_tells_its_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten answers of 1 to 10 ms, one each second: the last five are 6 to 10 ms."""
    clock = [100.0]
    monkeypatch.setattr(supervised, "perf_counter", lambda: clock[0])
    block = RunningBlock()
    assert block.state() is None
    told = []
    for number in range(1, 11):
        clock[0] = 100.0 + number
        seen = Observation(prompt=0, due_s=0.0, sent_s=0.0, measured=True)
        seen.done_s = number / 1000
        told.append(block.add(seen))
    assert told == [True] * 10
    failed = Observation(prompt=0, due_s=0.0, sent_s=0.0, measured=True, error="timeout")
    assert not block.add(failed)  # no second later
    found = block.state()
    assert found is not None
    assert found["failed"] == 1
    assert found["answers_per_s"] == pytest.approx(6 / 5)  # the one exactly 5 s ago counts
    assert found["p95_ms"] == pytest.approx(9.75)
    clock[0] += 60
    assert block.state() == {"answers_per_s": 0.0, "p95_ms": None, "failed": 1}


async def start_one(runs: LoadTestRuns) -> Run:
    return await runs.start(
        {}, None, caller=ANYBODY, token=None, tags=(), planned_s=None, limit_s=60
    )


async def test_a_directory_that_was_tidied_away_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(loadtest_runs, "_COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
    runs = LoadTestRuns(AsyncStore(None))
    for _ in range(2):
        run = await start_one(runs)
        shutil.rmtree(run.directory.parent)
        assert run.watching is not None
        await run.watching
        assert (run.state, run.message) == ("failed", "it printed no error")
    with pytest.raises(ExportError, match="the report could not be made: it printed no error"):
        await runs.report("0123456789ab", "{}")
    root = runs._files.root
    assert root is not None
    root.rename(tmp_path / "mine")
    root.symlink_to(tmp_path / "mine")  # as another user could do once the name is free
    assert (await start_one(runs)).directory.parent != root
    await runs.close()


async def test_a_full_disk_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    runs = LoadTestRuns(AsyncStore(None))
    with pytest.raises(ExportError, match="could not start a load test: No space left"):
        await start_one(runs)
    with pytest.raises(ExportError, match="report could not be made: No space left"):
        await runs.report("0123456789ab", "{}")


def test_settings_are_toml_whatever_their_strings_hold(tmp_path: Path) -> None:
    odd = '\U0001f4b6 \x7f "\\\n\t\u2028é'
    file = write_inputs(tmp_path, "0123456789ab", {"currency": odd, "modes": [odd]}, None)
    written = tomllib.loads(file.read_text(encoding="utf-8"))
    assert (written["currency"], written["modes"]) == (odd, [odd])


def test_prompts_of_a_request_reach_the_load_test_as_they_are(tmp_path: Path) -> None:
    chat = ChatPrompt.model_validate({"messages": [{"role": "user", "content": "h\xe9\u2028\n"}]})
    prompts = [to_prompt(item) for item in ("one\ntwo\u2028 {", chat, "one\ntwo\u2028 {")]
    file = write_inputs(tmp_path, "0123456789ab", {"url": "http://x"}, prompts)
    settings = load_settings(LoadTestSettings, ["--config", str(file)], program="vbon loadtest")
    assert load_prompts(settings) == prompts


async def test_one_that_hangs_is_killed_at_its_limit_and_with_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It neither ends when it is told to, by the end of its pipe, nor when it is interrupted."""
    hangs = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    monkeypatch.setattr(loadtest_runs, "_COMMAND", (sys.executable, "-c", hangs))
    runs = LoadTestRuns(AsyncStore(None))

    async def start(limit_s: float) -> tuple[Run, int]:
        run = await runs.start(
            {}, None, caller=ANYBODY, token=None, tags=(), planned_s=None, limit_s=limit_s
        )
        assert run.process is not None
        return run, run.process.pid

    monkeypatch.setattr(loadtest_runs, "_STOP_S", 0.1)
    past_its_limit, pid = await start(0.1)
    assert past_its_limit.watching is not None
    await asyncio.wait_for(past_its_limit.watching, 60)
    assert past_its_limit.state == "stopped"
    assert past_its_limit.message == (
        "it took longer than 0.1 s; nothing had been measured by then"
    )
    assert not psutil.pid_exists(pid)

    monkeypatch.setattr(loadtest_runs, "_STOP_S", 600.0)
    monkeypatch.setattr(loadtest_runs, "_CLOSE_S", 0.1)
    at_the_end, pid = await start(600)
    await asyncio.wait_for(runs.close(), 60)
    assert at_the_end.state == "stopped"
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(("count", "left"), [(0, 0), (2, 2), (3, 3), (5, 3)])
def test_only_the_newest_reports_are_kept(tmp_path: Path, count: int, left: int) -> None:
    for number in range(count):
        file = tmp_path / f"{number}.html"
        file.touch()
        os.utime(file, (number, number))
    delete_oldest(tmp_path, "*.html", keep=3)
    newest = {f"{number}.html" for number in range(count - left, count)}
    assert {file.name for file in tmp_path.iterdir()} == newest


async def test_the_default_load_test_is_that_of_the_command_line() -> None:
    """Levels by calibration, five rounds, no streaming beside best-of-N, within the server's limits."""
    body = LoadTestRequest()
    runtime = make_runtime(store="none", limits={"loadtest_max_in_flight": 64})
    async with serving(runtime):
        values = settings_of(runtime, body)
        assert planned_seconds(runtime, body) == LoadTestSettings().max_s == 300
        short = make_runtime(store="none", limits={"loadtest_max_s": 90})
        async with serving(short):
            assert planned_seconds(short, body) == 90
            assert settings_of(short, body)["limit_s"] == 90
    settings = LoadTestSettings(**values)
    assert settings.chooses_levels
    assert settings.modes == ["ref", "bon", "vbon"]
    assert (settings.max_in_flight, settings.max_s, settings.limit_s) == (64, 300, 600)
    same = ("rounds", "duration_s", "warmup_s", "stream", "max_tokens", "temperature")
    quality = ("quality_prompts", "quality_samples")
    for name in (*same, *quality):
        assert getattr(settings, name) == LoadTestSettings.model_fields[name].default, name


def test_the_time_that_is_left_is_told_from_the_first_block_on(tmp_path: Path) -> None:
    def told() -> tuple[int | None, str | None, float | None]:
        found = json.loads((tmp_path / "progress.json").read_text())
        return found["blocks_planned"], found["now"], found["left_s"]

    progress = Reporting(Quiet(), Journal(tmp_path), lambda: pytest.fail("there is no result yet"))
    progress.begin("calibrating: ref, 8 in flight", 1.0)
    assert told() == (None, "calibrating: ref, 8 in flight", None)
    progress.planned(4, 0, 20.0)
    progress.begin("ref, 8 in flight, round 0", 4.0, 20.0)
    assert told() == (4, "ref, 8 in flight, round 0", 20.0)
    progress.begin("scoring ref", None)
    assert told() == (4, "scoring ref", 20.0)
    progress.begin("ref, 8 in flight, round 1", 4.0, 15.0)
    assert told()[2] == 15.0
