"""``vbon serve --workers``: several front ends, with one set of engines, limits and metrics."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.auth.keys import new_key, write_keys
from service.bench.config import BenchSettings
from service.bench.harness import Bench
from service.bench.rows import ROWS
from tests.faults.service import lives
from tests.unit.fakes import make_runtime, serving
from tests.unit.openai_imitation import free_port
from tests.workers_parts import DEADLY
from vbon.engine.fake import FakeEngine

BODY = {"prompt": "the film was " + "long " * 20, "n": 4, "max_tokens": 24, "seed": 3}
# 0.8 s of decoding.
LONG = {"prompt": "p" * 50, "n": 8, "max_tokens": 400, "ignore_eos": True}


class Server:
    """A running service with its processes."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.port = free_port()
        self.log = directory / "log"
        chosen = {
            "port": self.port,
            "workers": 2,
            "policies": {"ref": "fake"},
            "reward": "fake",
            "store": f"{directory}/store.db",
            "limits": {"running_sequences": 32, "waiting_sequences": 0, "drain_s": 20},
            "restarts": {"backoff_s": 0.5},
            **settings,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.workers_parts", json.dumps(chosen)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._known: set[psutil.Process] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> set[psutil.Process]:
        """The parent and all below it that have been seen to run."""
        if psutil.pid_exists(self.process.pid):
            parent = psutil.Process(self.process.pid)
            self._known |= {parent, *parent.children(recursive=True)}
        return self._known

    def workers(self) -> list[int]:
        """The ids of the worker processes."""
        log = self.log.read_text()
        served = {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", log)}
        return sorted(one.pid for one in self.processes() if one.pid in served and one.is_running())

    async def ready(self) -> None:
        async with httpx.AsyncClient(base_url=self.url) as client:

            async def well() -> bool:
                with_answer = await client.get("/readyz")
                return with_answer.status_code == 200 and len(self.workers()) == 2

            await eventually(well)

    def all_gone(self) -> bool:
        self.process.poll()
        return not any(lives(one) for one in self.processes())


@contextmanager
def started(directory: Path, **settings: Any) -> Iterator[Server]:
    server = Server(directory, **settings)
    try:
        yield server
    except BaseException:
        print(server.log.read_text()[-4_000:])
        raise
    finally:
        for one in server.processes():
            if lives(one):
                one.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("workers")) as running:
        yield running


@asynccontextmanager
async def connection(server: Server) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client whose requests each have a new connection, so that any worker may answer."""
    headers = {"connection": "close"}
    async with httpx.AsyncClient(base_url=server.url, timeout=60, headers=headers) as client:
        yield client


async def eventually(condition: Callable[[], Any], seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while True:
            try:
                if await condition():
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


def value(page: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_answers_are_those_of_one_process(server: Server) -> None:
    await server.ready()
    async with connection(server) as client:
        found = [(await client.post("/generate?mode=bon", json=BODY)).json() for _ in range(4)]
    engines = {"ref": FakeEngine("fake", max_model_len=4_096)}
    async with serving(make_runtime(engines=engines)) as (_, alone):
        expected = (await alone.post("/generate?mode=bon", json=BODY)).json()
    for one in found:
        for field in ("text", "reward", "usage", "sampling", "finish_reason"):
            assert one.get(field) == expected.get(field), field


async def test_metrics_of_any_worker_are_those_of_all(server: Server) -> None:
    await server.ready()
    name = 'vbon:request_success_total{mode="bon"}'
    async with connection(server) as client:
        before = value((await client.get("/metrics")).text, name)
        answers = await asyncio.gather(
            *(client.post("/generate?mode=bon", json=BODY) for _ in range(7))
        )
        assert {answer.status_code for answer in answers} == {200}
        for _ in range(6):
            page = (await client.get("/metrics")).text
            assert value(page, name) == before + 7
            assert value(page, "vbon:ready") == value(page, "vbon:limits_shared") == 1
            assert value(page, 'vbon:engine_alive{policy="ref"}') == 1
            # One help text for each family, although two processes have it.
            assert page.count("# HELP vbon:request_success_total ") == 1


async def test_limits_hold_over_all_workers(server: Server) -> None:
    await server.ready()
    async with connection(server) as client:
        answers = await asyncio.gather(
            *(client.post("/generate?mode=bon", json=LONG) for _ in range(9))
        )
        # 32 places for 8 sequences each, and no place to wait.
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [200] * 4 + [429] * 5
        assert all(
            int(one.headers["retry-after"]) >= 1 for one in answers if one.status_code == 429
        )


async def test_a_killed_worker_ends_its_own_requests_only_and_comes_back(server: Server) -> None:
    await server.ready()
    victim, other = server.workers()
    clients = [httpx.AsyncClient(base_url=server.url, timeout=60) for _ in range(4)]
    sent = [asyncio.create_task(client.post("/generate?mode=bon", json=LONG)) for client in clients]

    def of(pid: int) -> int:
        """The connections that a process has accepted."""
        return len([one for one in psutil.Process(pid).net_connections() if one.raddr])

    async def accepted() -> bool:
        return of(victim) + of(other) >= 4

    await eventually(accepted)
    lost = of(victim)
    os.kill(victim, signal.SIGKILL)
    ended = await asyncio.gather(*sent, return_exceptions=True)
    failed = [one for one in ended if isinstance(one, httpx.TransportError)]
    assert len(failed) == lost
    assert {one.status_code for one in ended if isinstance(one, httpx.Response)} <= {200}
    await asyncio.gather(*(client.aclose() for client in clients))

    async def replaced() -> bool:  # the other worker answers meanwhile
        return victim not in server.workers() and len(server.workers()) == 2

    await eventually(replaced)
    await server.ready()
    async with connection(server) as client:

        async def idle() -> bool:
            page = (await client.get("/metrics")).text
            restarts = sum(value(page, f'vbon:restarts_total{{part="worker-{n}"}}') for n in (1, 2))
            return restarts == 1 and value(page, "vbon:num_sequences_running") == 0

        await eventually(idle)
        # All places are free again, those of the dead worker too.
        answers = await asyncio.gather(
            *(client.post("/generate?mode=bon", json=LONG) for _ in range(4))
        )
        assert {answer.status_code for answer in answers} == {200}


async def test_a_dead_engine_is_restarted_for_all_workers(server: Server) -> None:
    await server.ready()
    async with connection(server) as client:
        await client.post("/generate?mode=ref", json={**BODY, "prompt": DEADLY, "n": 1})
        seen = set()

        async def served() -> bool:
            answer = await client.post("/generate?mode=ref", json={**BODY, "n": 1})
            seen.add(answer.status_code)
            page = (await client.get("/metrics")).text
            return answer.status_code == 200 and value(page, 'vbon:restarts_total{part="ref"}') == 1

        await eventually(served)
        assert seen <= {200, 503}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server with keys, and an admin's key."""
    directory = tmp_path_factory.mktemp("keyed")
    key, token = new_key("root", role="admin")
    write_keys(directory / "keys.jsonl", [key])
    with started(directory, auth={"keys_file": f"{directory}/keys.jsonl"}) as running:
        yield running, token


@asynccontextmanager
async def admin(keyed: tuple[Server, str]) -> AsyncGenerator[httpx.AsyncClient, None]:
    server, token = keyed
    await server.ready()
    async with connection(server) as client:
        client.headers["authorization"] = f"Bearer {token}"
        yield client


async def test_any_worker_takes_a_verdict_on_any_pair(keyed: tuple[Server, str]) -> None:
    pair = {"prompt": "p", "sides": [{"mode": "ref"}, {"mode": "bon", "n": 2}], "max_tokens": 4}
    async with admin(keyed) as client:
        for _ in range(6):
            shown = await client.post("/preferences/pairs", json=pair)
            assert shown.status_code == 200, shown.text
            verdict = {"pair": shown.json()["pair"], "winner": "tie"}
            assert (await client.post("/preferences", json=verdict)).status_code == 200
            assert (await client.post("/preferences", json=verdict)).status_code == 404
        [standing] = (await client.get("/preferences")).json()["standings"]
        assert standing["ties"] == 6


async def test_any_worker_shows_stops_and_keeps_a_load_test(keyed: tuple[Server, str]) -> None:
    body = {"modes": ["ref"], "concurrency": [1], "rounds": 20, "duration_s": 1, "warmup_s": 0}
    async with admin(keyed) as client:
        begun = await client.post("/loadtests", json=body)
        assert begun.status_code == 202, begun.text
        run = begun.json()["id"]
        for _ in range(6):
            assert (await client.get(f"/loadtests/{run}")).json()["state"] == "running"
            assert (await client.post("/loadtests", json=body)).status_code == 429

        async def measured() -> bool:
            status = (await client.get(f"/loadtests/{run}")).json()
            assert status["state"] == "running", status
            return bool(status["blocks_done"] >= 1)

        await eventually(measured)
        assert (await client.delete(f"/loadtests/{run}")).status_code == 202

        async def stopped() -> bool:
            status = (await client.get(f"/loadtests/{run}")).json()
            return bool(status["state"] == "stopped")

        await eventually(stopped)
        link = (await client.post(f"/loadtests/{run}/report-link")).json()["url"]
        for _ in range(4):
            report = await client.get(link, headers={"authorization": ""})
            assert report.status_code == 200
            assert len((await client.get("/loadtests")).json()["runs"]) == 1


async def test_a_reload_reaches_all_workers_and_interrupts_nobody(
    keyed: tuple[Server, str],
) -> None:
    async with admin(keyed) as client:
        sent = [asyncio.create_task(client.post("/generate?mode=bon", json=LONG)) for _ in range(3)]

        async def running() -> bool:
            page = (await client.get("/metrics")).text
            return value(page, "vbon:num_sequences_running") == 24

        await eventually(running)
        reloaded = await client.post("/admin/reload", json={"model": "ref"})
        assert reloaded.status_code == 200, reloaded.text
        assert reloaded.json()["models"] == ["ref"]
        # The engine before is stopped by now, which would have ended them with an error.
        assert {(await one).status_code for one in sent} == {200}
        unknown = await client.post("/admin/reload", json={"model": "x"})
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (422, "model")
        scored = await client.post("/admin/reload", json={"model": "reward"})
        assert scored.status_code == 200, scored.text
        texts = {
            (await client.post("/generate?mode=ref", json=BODY)).json()["text"] for _ in "1234"
        }
        assert len(texts) == 1

        async def restarted() -> bool:  # the new engine is the one that is supervised
            page = (await client.get("/metrics")).text
            return value(page, 'vbon:restarts_total{part="ref"}') >= 1

        await client.post("/generate?mode=ref", json={**BODY, "prompt": DEADLY, "n": 1})
        await eventually(restarted)


async def test_a_holder_that_is_killed_is_replaced_and_what_it_stored_stays(
    keyed: tuple[Server, str],
) -> None:
    server, _ = keyed
    body = {"modes": ["ref"], "concurrency": [1], "rounds": 20, "duration_s": 1, "warmup_s": 0}
    async with admin(keyed) as client:
        kept = len((await client.get("/loadtests")).json()["runs"])
        run = (await client.post("/loadtests", json=body)).json()["id"]
        [child] = [one for one in server.processes() if lives(one) and _measures(one)]
        assert child.ppid() in server.workers()
        os.kill(child.ppid(), signal.SIGKILL)
        seen = set()

        async def forgotten() -> bool:
            answer = await client.get(f"/loadtests/{run}")
            seen.add(answer.status_code)
            return answer.status_code == 404

        await eventually(forgotten)
        assert seen <= {200, 404, 503}
        await eventually(lambda: asyncio.to_thread(lambda: not lives(child)))
        await server.ready()

        async def listed() -> bool:  # the new worker is ready, and the other one connected to it
            answer = await client.get("/loadtests")
            return answer.status_code == 200 and len(answer.json()["runs"]) == kept

        await eventually(listed)

        async def begun() -> bool:
            answer = await client.post("/loadtests", json=body)
            assert answer.status_code in (202, 503), answer.text
            return answer.status_code == 202

        await eventually(begun)


def _measures(one: psutil.Process) -> bool:
    try:
        return "service.loadtest" in one.cmdline()
    except psutil.Error:
        return False


async def test_a_signal_lets_requests_finish_and_leaves_no_process(server: Server) -> None:
    """As of Ctrl-C: the whole group of the terminal gets the signal. It ends the module's server."""
    await server.ready()
    async with connection(server) as client:
        sent = [asyncio.create_task(client.post("/generate?mode=bon", json=LONG)) for _ in range(4)]

        async def running() -> bool:
            page = (await client.get("/metrics")).text
            return value(page, "vbon:num_sequences_running") == 32

        await eventually(running)
        server.processes()
        os.killpg(server.process.pid, signal.SIGINT)
        assert {(await one).status_code for one in sent} == {200}
    assert await asyncio.to_thread(server.process.wait, 60) == -signal.SIGINT

    async def gone() -> bool:
        return server.all_gone()

    # multiprocessing's own helper sees that its parent has gone.
    await eventually(gone, 10)
    async with connection(server) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/healthz")


async def test_workers_end_with_a_parent_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "t"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with started(tmp_path) as server:
        await server.ready()
        assert len(list(temporary.glob("vbon-*/*"))) == 6
        assert len(server.workers()) == 2
        os.kill(server.process.pid, signal.SIGKILL)

        async def gone() -> bool:
            return server.all_gone()

        await eventually(gone, 30)
    assert not list(temporary.glob("vbon-*"))


async def test_a_model_that_cannot_be_loaded_ends_everything(tmp_path: Path) -> None:
    with started(tmp_path, policies={"ref": "fake:broken"}) as server:
        assert await asyncio.to_thread(server.process.wait, 120) == 1

        async def gone() -> bool:
            return server.all_gone()

        await eventually(gone, 10)
        assert "fake:broken cannot be loaded" in server.log.read_text()


async def test_workers_whose_models_at_urls_cannot_be_reached_are_started_again(
    tmp_path: Path,
) -> None:
    remote = {"ref": f"http://127.0.0.1:{free_port()}/v1"}
    with started(tmp_path, policies=remote, engine={"remote_start_timeout_s": 0.1}) as server:

        async def both() -> bool:
            log = server.log.read_text()
            server.processes()
            return all(f"worker-{number} is running again" in log for number in (1, 2))

        await eventually(both, 60)
        assert server.process.poll() is None


async def test_the_bench_compares_workers_with_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.bench.workers.WORKERS", (1, 2))
    settings = BenchSettings(requests=20, pairs=1, reward=None, policies={"ref": "fake"})
    bench = Bench(settings, make_runtime(), [], "")
    several, cost = await ROWS["workers"](bench)  # type: ignore[misc]
    assert several.value.median > 0
    assert "2: " in several.detail
    assert cost.value.median > 0
