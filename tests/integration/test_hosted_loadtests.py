"""Load tests that the service runs: real child processes against a real socket."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.auth.keys import new_key, write_keys
from service.runtime.runtime import Runtime
from tests.faults.service import lives
from tests.unit.fakes import make_runtime, served, serving
from tests.unit.slow_server import SlowServer, listening
from tests.unit.test_loadtests import MARKUP, SHORT
from vbon.engine.fake import FakeEngine

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
        await true_of(lambda: not lives(child))
    assert (out / "report.html").is_file()


def _child() -> psutil.Process:
    """The child process that runs the load test."""
    (found,) = [
        child
        for child in psutil.Process().children()
        if lives(child)  # not one of another test in this process, which has ended
        and "-m service.loadtest" in " ".join(child.cmdline())
    ]
    return found


async def test_one_without_levels_calibrates() -> None:
    async with talking(slow_runtime(store="none", limits={"running_sequences": 8})) as client:
        asked = {"modes": ["ref"], "rounds": 1, "duration_s": 0.3, "warmup_s": 0.1, "max_tokens": 8}
        run = (await client.post("/loadtests", json=asked | {"quality_prompts": 0})).json()["id"]
        await until(client, run, "finished")
        result = (await client.get(f"/loadtests/{run}/result")).json()
    assert [cell["in_flight"] for cell in result["calibration"]["cells"]] == [1, 8, 16]
    assert [cell["load"] for cell in result["cells"]] == [1, 8, 16]
    assert result["settings"]["max_tokens"] == 8
