"""Signals that stop the server let running requests finish, whichever of them it is."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.hosted_loadtests import report_links
from service.hosted_loadtests.report_links import ReportLinks
from service.hosted_loadtests.runs import LoadTestRuns, Run
from service.http.uvicorn_protocol import http_options
from service.page import page_contents, read_asset
from service.server import ALSO_STOPPING, DrainingServer, keep_for_good
from service.store.async_store import AsyncStore
from tests.unit.fakes import FakeEngine, make_runtime, on_a_port
from vbon.errors import NotFoundError

BODY = {"prompt": "p", "max_tokens": 20, "ignore_eos": True}


@pytest.mark.parametrize("sig", [signal.SIGTERM, *ALSO_STOPPING])
async def test_a_request_that_runs_is_answered_and_then_the_server_ends(sig: int) -> None:
    engine = FakeEngine(seconds_per_token=0.01)
    runtime = make_runtime(engines={"ref": engine})
    outside = signal.signal(sig, signal.SIG_DFL)  # under nohup, SIGHUP is ignored and stays so
    before = signal.getsignal(sig)
    app = create_app(runtime)
    config = uvicorn.Config(app, port=0, log_config=None, **http_options(runtime.settings.limits))
    server = DrainingServer(config, runtime)
    with server.capture_signals():
        serving = asyncio.create_task(server._serve())
        while not (server.started and runtime.ready):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            asked = asyncio.create_task(client.post("/generate?mode=ref", json=BODY))
            while not engine.running:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            os.kill(os.getpid(), sig)
            answer = await asked
            async with asyncio.timeout(60):
                await serving
        assert server._captured_signals == [sig]
        server._captured_signals.clear()  # uvicorn would raise it again and end this process
    assert (answer.status_code, answer.json()["usage"]["returned_tokens"]) == (200, 20)
    assert signal.signal(sig, outside) is before


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As SIGHUP is for a server that was started with nohup."""
    runtime = make_runtime()
    config = uvicorn.Config(create_app(runtime), log_config=None)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with DrainingServer(config, runtime).capture_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_connections_are_refused_while_some_descriptors_are_left() -> None:
    """With none left, no file could be opened and no engine started."""
    runtime = make_runtime()
    scarce: dict[str, Any] = http_options(runtime.settings.limits, open_files=4096)
    async with on_a_port(runtime, **scarce) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/models")).status_code == 200
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]
        try:
            scarce["http"].most_descriptor = min(held) + 100
            client_2 = httpx.AsyncClient(base_url=url)
            refused = await client_2.get("/models")
            await client_2.aclose()
        finally:
            for descriptor in held:
                os.close(descriptor)
        again = await client.get("/models")
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "overloaded")
    assert again.status_code == 200


def test_a_quarter_of_few_descriptors_is_kept() -> None:
    limits = make_runtime().settings.limits
    kept = {
        count: count - http_options(limits, count)["http"].most_descriptor
        for count in (64, 128, 1024, 65_536)
    }
    assert kept == {64: 16, 128: 32, 1024: 64, 65_536: 64}


def test_the_page_needs_no_descriptor_once_the_server_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page_contents()
    read_asset.cache_clear()

    def full(*_: object) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", full)
    monkeypatch.setattr(Path, "open", full)
    assert b"<html" in read_asset("index.html").content


async def test_a_load_test_that_was_killed_says_so(tmp_path: Path) -> None:
    runs = LoadTestRuns(AsyncStore(None))
    for code, why in ((-9, "signal SIGKILL"), (-15, "signal SIGTERM"), (1, "the last line")):
        run = Run("0" * 12, "", tmp_path, (), None)
        (tmp_path / "stderr").write_text("error: the last line\n")
        await runs._conclude(run, code)
        assert run.state == "failed"
        assert why in (run.message or "")


def test_one_end_s_report_links_do_not_end_another_s() -> None:
    links = ReportLinks()
    theirs = links.make("run-of-bob", "bob")
    first, *_, last = (links.make("run-of-ann", "ann") for _ in range(1000))
    assert links.run_of(theirs) == "run-of-bob"
    assert links.run_of(last) == "run-of-ann"
    with contextlib.suppress(NotFoundError):
        links.run_of(first)
        pytest.fail("the oldest of whoever has the most gives way")
    assert len(links._links) == 256


def test_a_report_link_opens_its_report_for_ten_minutes_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([1000.0, 1000.0, 1599.9, 1600.0, 9999.0, 9999.0, 9999.0, 9999.0, 9999.0])
    monkeypatch.setattr(report_links, "monotonic", lambda: next(clock))
    links = ReportLinks()
    first = links.make("run", "ann")
    for opens in (True, True, False, False):
        if opens:
            assert links.run_of(first) == "run"
        else:
            with pytest.raises(NotFoundError, match="expired"):
                links.run_of(first)
    links.make("other", "ann")
    assert len(links._links) == 1  # what has expired takes no place
    for wrong in ("", first[:-1], first + "x"):
        with pytest.raises(NotFoundError):
            links.run_of(wrong)


def test_what_the_collector_passed_over_is_collected_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise triton takes its objects for leaks, and says so in forty lines."""
    at_the_end: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", at_the_end.append)
    thresholds = gc.get_threshold()
    try:
        keep_for_good()
        assert gc.get_freeze_count() > 0
        for work in at_the_end:
            work()
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()  # as the tests have it
        gc.set_threshold(*thresholds)
