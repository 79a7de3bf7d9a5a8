"""A front end's own HTTP server, past Serve's proxy, and the load of the fleet's bench on it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from asgi_lifespan import LifespanManager

from service.app import create_app
from service.bench.wire import SideError
from service.fleet import direct
from service.fleet.bench.cpu import cpu_of_tree, spent, titled
from service.fleet.bench.load import Answered, Job, run_job
from service.fleet.bench.rows import Side, measured, rows
from service.fleet.direct import DirectApp
from service.runtime.runtime import Runtime
from tests.unit.fakes import make_runtime
from tests.unit.openai_imitation import free_port
from vbon.engine.fake import FakeEngine
from vbon.errors import InvalidInputError


@pytest.fixture(autouse=True)
def _limits_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "raise_open_files_limit", lambda limits: None)


def runtime_of(milliseconds: float = 0.0) -> Runtime:
    seconds = milliseconds / 1000
    names = ("ref", "vbon")
    engines = {name: FakeEngine(max_model_len=4_096, seconds_per_token=seconds) for name in names}
    return make_runtime(engines=engines)


@asynccontextmanager
async def listening(runtime: Runtime, port: int) -> AsyncGenerator[LifespanManager, None]:
    app = DirectApp(create_app(runtime), runtime, port)
    async with LifespanManager(app, shutdown_timeout=20) as manager:
        while not runtime.ready:  # noqa: ASYNC110  (a few turns)
            await asyncio.sleep(0)
        yield manager


async def test_front_ends_share_a_port_which_is_free_when_they_have_ended() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    body = {"prompt": "a", "n": 2, "max_tokens": 4}
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(listening(runtime_of(), port))
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{url}/generate?mode=bon", json=body)
            assert answer.status_code == 200
            assert answer.json()["text"]
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/healthz")


async def test_a_request_under_way_is_answered_before_the_end() -> None:
    port, runtime = free_port(), runtime_of(milliseconds=20)
    body = {"prompt": "a", "max_tokens": 10, "ignore_eos": True}
    async with httpx.AsyncClient() as client:
        async with listening(runtime, port):
            url = f"http://127.0.0.1:{port}/generate?mode=ref"
            asking = asyncio.create_task(client.post(url, json=body))
            while not len(runtime.in_flight):  # noqa: ASYNC110  (another task's state)
                await asyncio.sleep(0.001)
        answer = await asking
    assert answer.status_code == 200
    assert answer.json()["usage"]["generated_tokens"] == 10


async def test_a_port_that_something_else_uses_is_told() -> None:
    port = free_port()
    held = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port)
    async with held:
        with pytest.raises(InvalidInputError, match=rf"127.0.0.1:{port}.*set direct_port"):
            direct.shared_socket("127.0.0.1", port)


async def test_the_load_of_every_row_is_answered_and_errors_are_told() -> None:
    port = free_port()
    async with listening(runtime_of(), port):
        for row in rows(tokens=3, n=2):
            url = f"http://127.0.0.1:{port}/generate?mode={row.mode}"
            found = await run_job(Job(url, row.body, 3, min(row.in_flight, 2)))
            assert len(found.first_s) == len(found.whole_s) == 3
            assert all(
                0 < a <= b
                for a, b in zip(sorted(found.first_s), sorted(found.whole_s), strict=True)
            )
            assert row.value(found) > 0
        with pytest.raises(SideError, match="answered 422"):
            await run_job(Job(url, {"promt": "x"}, 1, 1))


def test_the_cpu_time_of_a_tree_has_its_processes_and_no_others() -> None:
    spin = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.1: pass\n"
    wait = "print(flush=True); input()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin + wait!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = cpu_of_tree(process.pid)
        process.stdout.readline()
        after = cpu_of_tree(process.pid)
        assert process.pid in before
        assert len(after) == 2
        assert sum(after.values()) >= 0.1
        assert titled(after, sys.executable) == after
        assert titled(after, "ray::") == {}
        assert spent({1: 0.5, 2: 9.0}, {1: 0.75, 3: 1.0}) == 0.25
        assert not cpu_of_tree(process.pid, frozenset({process.pid}))
        assert process.pid not in cpu_of_tree(os.getpid(), frozenset({process.pid}))
        process.stdin.close()


async def test_figures_are_of_the_fleet_over_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fleet takes 4 ms more, answers 3/4 as much, and 1.5 times the CPU time, 1.25 times in front."""
    jobs: list[Job] = []

    async def answered(job: Job) -> Answered:
        jobs.append(job)
        fleet = job.url.startswith("http://fleet")
        front = 0.0050 if fleet else 0.0040
        used["front"] += front * job.requests
        used["rest"] += (0.0060 - front if fleet else 0.0) * job.requests
        seconds = job.requests / (75 if fleet else 100)
        latency = 0.014 if fleet else 0.010
        return Answered(seconds, [latency] * 3, [0.1] * job.requests)

    used = {"front": 0.0, "rest": 0.0}
    monkeypatch.setattr("service.fleet.bench.rows.job_in_child", answered)

    def cpu() -> dict[int, float]:
        return {1: used["front"], 2: used["rest"]}

    fleet = Side("http://fleet", cpu, lambda all_of_them: {1: all_of_them[1]})
    alone = Side("http://alone", cpu)
    first, _, _, throughput, *_ = rows(tokens=3, n=2)
    [more] = await measured(first, 2, 10, fleet, alone)
    assert (more.value.median, more.goal, more.reached) == (pytest.approx(4.0), 5.0, True)
    assert {job.requests for job in jobs} == {10}
    share, front, whole = await measured(throughput, 2, 10, fleet, alone)
    assert {job.requests for job in jobs[-6:]} == {100}
    assert (share.value.median, share.reached) == (pytest.approx(0.75), False)
    assert (front.value.median, front.reached) == (pytest.approx(1.25), False)
    assert (whole.value.median, whole.reached) == (pytest.approx(1.5), None)
    assert "5 [5, 5] ms against 4 [4, 4] ms" in front.detail
