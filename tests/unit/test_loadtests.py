"""``/loadtests``: limits, one at a time, run by a child process against a real socket."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
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
from service.loadtest.load.prompts import load_prompts
from service.loadtest.load.supervised import Reporting
from service.runtime.runtime import Runtime
from service.schemas.loadtests import LoadTestRequest
from service.schemas.prompts import ChatPrompt, to_prompt
from service.store import add_run, open_store
from service.store.async_store import AsyncStore
from tests.unit.fakes import make_runtime, served, serving
from tests.unit.slow_server import SlowServer, listening
from tests.unit.test_loadtest import Quiet
from vbon.config import load_settings
from vbon.engine.fake import FakeEngine
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
# The same by a number of requests, which a busy machine cannot leave without any.
COUNTED = {name: value for name, value in SHORT.items() if name != "duration_s"} | {"requests": 8}
LONG = SHORT | {"rounds": 20, "duration_s": 0.5}


def slow_runtime(**settings: Any) -> Runtime:
    engines = {name: FakeEngine(name, seconds_per_token=0.002) for name in ("ref", "vbon")}
    return make_runtime(engines=engines, **settings)


@asynccontextmanager
async def talking(runtime: Runtime, token: str = "") -> AsyncGenerator[httpx.AsyncClient, None]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with (
        served(runtime) as url,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=90) as client,
    ):
        yield client


async def until(client: httpx.AsyncClient, run: str, *states: str, done: int = 0) -> dict[str, Any]:
    """The status once the load test has one of the states and at least ``done`` blocks are done."""
    async with asyncio.timeout(90):
        while True:
            status: dict[str, Any] = (await client.get(f"/loadtests/{run}")).json()
            if status["state"] in states and status["blocks_done"] >= done:
                return status
            assert status["state"] in ("running", "stopping"), status
            await asyncio.sleep(0.1)


async def true_of(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110  (another process's doing)
            await asyncio.sleep(0.1)


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


async def test_a_run_grows_is_kept_and_reported_without_markup_with_the_caller_s_key(
    tmp_path: Path,
) -> None:
    (ann, token), (bob, other) = new_key("ann"), new_key("bob")
    write_keys(tmp_path / "keys.jsonl", [ann, bob])
    keys, store = {"keys_file": str(tmp_path / "keys.jsonl")}, str(tmp_path / "s.db")
    async with talking(slow_runtime(auth=keys, store=store), token) as client:
        started = await client.post("/loadtests", json=COUNTED)
        assert started.status_code == 202, started.text
        run = started.json()["id"]
        second = await client.post("/loadtests", json=COUNTED)
        not_theirs = await client.delete(
            f"/loadtests/{run}", headers={"authorization": f"Bearer {other}"}
        )
        command = " ".join(_child().cmdline())
        await until(client, run, "running", "finished", done=2)
        if (await client.get(f"/loadtests/{run}")).json()["state"] == "running":
            partial = (await client.get(f"/loadtests/{run}/result")).json()
            assert 0 < partial["blocks_done"] <= partial["blocks_planned"] == 3
        status = await until(client, run, "finished")
        result = (await client.get(f"/loadtests/{run}/result")).json()
        listed = (await client.get("/loadtests", params={"tag": MARKUP})).json()
        report = await client.get(f"/loadtests/{run}/report")
        same = await client.get(f"/loadtests/{run}/comparison", params={"against": run})
        link = (await client.post(f"/loadtests/{run}/report-link")).json()["url"]
        linked = await client.get(link, headers={"authorization": ""})
        keyless = await client.get(f"/loadtests/{run}/report", headers={"authorization": ""})
    assert (second.status_code, second.json()["error"]["type"]) == (429, "overloaded")
    assert run in second.json()["error"]["message"]
    assert int(second.headers["retry-after"]) >= 5
    assert not_theirs.status_code == 403
    assert token not in command
    assert MARKUP not in command
    assert (status["blocks_done"], status["blocks_planned"], status["result"]) == (3, 3, True)
    assert (result["id"], result["complete"], result["prompts"]) == (run, True, 2)
    assert {cell["variant"] for cell in result["cells"]} == {"ref", "bon (N=2)", "vbon"}
    assert all(cell["requests"] > 0 and not cell["errors"] for cell in result["cells"])
    assert [(one["id"], one["tags"]) for one in listed["runs"]] == [(run, [MARKUP])]
    for page in (report, linked):
        assert page.status_code == 200
        assert page.headers["content-security-policy"].startswith(
            "sandbox allow-scripts allow-downloads;"
        )
        assert "allow-same-origin" not in page.headers["content-security-policy"]
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["x-content-type-options"] == "nosniff"
        assert MARKUP not in page.text
        assert "&lt;script&gt;alert(1)" in page.text
    assert keyless.status_code == 401
    assert same.json()["statement"].startswith("Too few rounds")
    assert same.json()["settings_changed"] == {}
    # Another server with the same store has the run too, and renders its report.
    async with serving(make_runtime(store=store)) as (_, client):
        again = await client.get(f"/loadtests/{run}/report")
        assert (again.status_code, again.text) == (200, report.text)
        assert (await client.get(f"/loadtests/{run}")).json()["state"] == "finished"
        assert (await client.get(f"/loadtests/{run}/result")).json() == result


async def test_one_that_is_stopped_keeps_what_was_measured_and_another_may_start(
    tmp_path: Path,
) -> None:
    async with talking(slow_runtime(store=str(tmp_path / "s.db"))) as client:
        run = (await client.post("/loadtests", json=LONG)).json()["id"]
        await until(client, run, "running", done=1)
        stopping = await client.delete(f"/loadtests/{run}")
        assert stopping.json()["state"] == "stopping"
        await until(client, run, "stopped")
        result = (await client.get(f"/loadtests/{run}/result")).json()
        again = await client.delete(f"/loadtests/{run}")
        (kept,) = (await client.get("/loadtests")).json()["runs"]
        next_one = await client.post("/loadtests", json=LONG)
        pid = _child().pid
    assert not result["complete"]
    assert 1 <= result["blocks_done"] < result["blocks_planned"] == 60
    assert again.json()["state"] == "stopped"
    assert kept["id"] == run
    assert next_one.status_code == 202
    assert not psutil.pid_exists(pid)  # the load test has ended with the server


async def test_one_that_fails_says_why_and_one_past_its_limit_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with talking(slow_runtime(store="none")) as client:
        monkeypatch.setattr("service.routes.loadtests.own_url", lambda _: "http://127.0.0.1:9")
        run = (await client.post("/loadtests", json=SHORT)).json()["id"]
        status = await until(client, run, "failed")
        assert "not ready: not reachable" in status["message"]
        monkeypatch.undo()
        monkeypatch.setattr("service.routes.loadtests.ROOM_S", -598.0)
        run = (await client.post("/loadtests", json=LONG)).json()["id"]
        status = await until(client, run, "stopped")
        assert "it took longer than 2 s" in status["message"]


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
    await asyncio.wait_for(past_its_limit.watching, 20)
    assert past_its_limit.state == "stopped"
    assert past_its_limit.message == (
        "it took longer than 0.1 s; nothing had been measured by then"
    )
    assert not psutil.pid_exists(pid)

    monkeypatch.setattr(loadtest_runs, "_STOP_S", 600.0)
    monkeypatch.setattr(loadtest_runs, "_CLOSE_S", 0.1)
    at_the_end, pid = await start(600)
    await asyncio.wait_for(runs.close(), 20)
    assert at_the_end.state == "stopped"
    assert not psutil.pid_exists(pid)


async def test_nothing_is_left_of_a_program_that_is_killed(tmp_path: Path) -> None:
    server = SlowServer()
    parent_code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'service.loadtest', *sys.argv[1:]],"
        " stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    out = tmp_path / "out"
    async with listening(server):
        flags = [
            "--url",
            server.url,
            "--out",
            str(out),
            "--store",
            "none",
            "--supervised",
            "--concurrency",
            "1",
            "--rounds",
            "99",
            "--duration-s",
            "0.3",
            "--warmup-s",
            "0",
            "--quality-prompts",
            "0",
        ]
        parent = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            parent_code,
            *flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert parent.stdout is not None
        child = psutil.Process(int(await parent.stdout.readline()))
        await true_of((out / "result.json").is_file)
        os.kill(parent.pid, signal.SIGKILL)
        await parent.wait()
        await true_of(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert (out / "report.html").is_file()


def _child() -> psutil.Process:
    """The child process that runs the load test."""
    (found,) = [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE  # of another test in this process
        and "service.loadtest" in " ".join(child.cmdline())
    ]
    return found


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


async def test_one_without_levels_calibrates() -> None:
    async with talking(slow_runtime(store="none", limits={"running_sequences": 8})) as client:
        asked = {"modes": ["ref"], "rounds": 1, "duration_s": 0.3, "warmup_s": 0.1, "max_tokens": 8}
        run = (await client.post("/loadtests", json=asked | {"quality_prompts": 0})).json()["id"]
        await until(client, run, "finished")
        result = (await client.get(f"/loadtests/{run}/result")).json()
    assert [cell["in_flight"] for cell in result["calibration"]["cells"]] == [1, 8, 16]
    assert [cell["load"] for cell in result["cells"]] == [1, 8, 16]
    assert result["settings"]["max_tokens"] == 8


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
