"""Engines whose start fails, hangs or is cancelled, with a stub in place of vLLM."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from service.runtime.supervisor import Supervisor
from tests.unit.test_checkpoints import write_model
from vbon.concurrency import all_or_first_error
from vbon.engine.protocol import Candidate
from vbon.engine.vllm import engine as vllm_engine
from vbon.engine.vllm import host as vllm_host
from vbon.engine.vllm.ending import can_be_killed, killed_if_safe
from vbon.engine.vllm.engine import VllmEngine
from vbon.engine.vllm.file_caches import forget_files
from vbon.engine.vllm.host import VllmHost
from vbon.engine.vllm.options import VllmOptions
from vbon.errors import CheckpointError, EngineError
from vbon.storage.checkpoints import Checkpoint, check_checkpoint


class Llm:
    """The part of ``AsyncLLM`` that a host needs to start and stop."""

    errored = False

    def __init__(self) -> None:
        self.up = True
        self.model_config = SimpleNamespace(max_model_len=10)
        self.engine_core = SimpleNamespace(
            get_output_async=None, resources=SimpleNamespace(engine_manager=None)
        )
        self.output_handler: asyncio.Task[Any] | None = None
        self.waiting, self.told = 0, list[Exception]()
        self.output_processor = SimpleNamespace(
            get_num_unfinished_requests=lambda: self.waiting, propagate_error=self.told.append
        )

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(encode=lambda *_, **__: [1], get_vocab=lambda: {"a": 1})

    def shutdown(self) -> None:
        # vLLM's own task would log the end of the engine as an error if it still ran by now.
        assert self.output_handler is None or self.output_handler.cancelling()
        self.up = False


class Guard:
    """A guardian that can be killed."""

    on_watch = True

    def dismiss(self) -> None:
        pass


class Host(VllmHost):
    """Builds stubs once they may be built; the first ``failures`` fail."""

    def __init__(self, path: str, failures: int = 0) -> None:
        super().__init__(path, VllmOptions())
        self.failures, self.built, self.attempts, self.killed = failures, list[Llm](), 0, 0
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.let_go.set()

    def _build(self) -> Any:
        self.attempts += 1
        self.begun.set()
        self.let_go.wait(60)
        if self.attempts <= self.failures:
            raise CheckpointError("no memory right now")
        self.built.append(Llm())
        return self.built[-1]

    def kill(self) -> None:
        self.killed += 1


@pytest.fixture
def path(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(vllm_host, "Guardian", lambda _: Guard())
    monkeypatch.setattr(vllm_host, "_release", lambda _: None)
    monkeypatch.setattr(
        vllm_host,
        "check_checkpoint",
        lambda where, _: Checkpoint(where, "r"),
    )
    return str(tmp_path)


async def test_nobody_who_waited_for_a_build_that_failed_builds_again(path: str) -> None:
    host = Host(path, failures=1)
    host.let_go.clear()
    asyncio.get_running_loop().call_later(0.05, host.let_go.set)
    with pytest.raises(CheckpointError, match="no memory"):
        await all_or_first_error(host.start() for _ in range(3))
    await host.stop()
    await asyncio.sleep(0.2)
    assert (host.attempts, host.built) == (1, [])
    await host.start()
    assert (host.attempts, host.alive) == (2, True)


async def test_one_that_is_stopped_while_it_is_built_is_shut_down(path: str) -> None:
    host = Host(path)
    host.let_go.clear()
    starting = asyncio.create_task(host.start())
    await asyncio.to_thread(host.begun.wait, 60)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await host.stop()
    host.let_go.set()
    async with asyncio.timeout(60):
        while not host.built or host.built[0].up:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert [llm.up for llm in host.built] == [False]
    assert not host.alive
    await host.start()
    assert host.alive


async def test_one_that_hangs_while_it_is_warmed_up_is_ended_and_tried_again(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(VllmEngine):
        hangs = 2

        async def generate(self, *_: Any, **__: Any) -> AsyncGenerator[Candidate, None]:
            self.hangs -= 1
            if self.hangs >= 0:
                await asyncio.Event().wait()
            return
            yield

    monkeypatch.setattr(vllm_engine, "WARM_UP_S", 0.1)
    engine = Hanging(host := Host(path))
    with pytest.raises(EngineError, match=r"did not decode within 0\.1 s"):
        await engine.start()
    assert host.killed == 1
    assert not engine.alive
    supervisor = Supervisor({"ref": engine}, poll_s=0.01, backoff_s=0.01)
    supervisor.start()
    async with asyncio.timeout(60):
        while not engine.alive:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await supervisor.stop()
    assert host.killed == 2


async def test_a_part_that_cannot_be_looked_at_is_still_brought_back(path: str) -> None:
    class Part:
        alive = True

        async def check(self) -> None:
            raise ValueError("process object is closed")

        async def start(self) -> None:
            self.alive = True

    supervisor = Supervisor({"part": (part := Part())}, poll_s=0.01)
    supervisor.start()
    await asyncio.sleep(0.05)
    part.alive = False
    async with asyncio.timeout(60):
        while not supervisor.supervised["part"].restarts:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await supervisor.stop()


@pytest.mark.vllm
async def test_those_who_still_wait_when_it_is_shut_down_are_told(path: str) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    host = Host(path)
    for waiting in (0, 3):
        await host.start()
        host.built[-1].waiting = waiting
        await host.stop()
    assert [type(error) for built in host.built for error in built.told] == [EngineDeadError]


async def test_what_would_log_the_end_of_the_engine_is_cancelled_first(path: str) -> None:
    host = Host(path)
    await host.start()
    handler = asyncio.create_task(asyncio.Event().wait())
    host.built[0].output_handler = handler
    await host.stop()
    assert not host.built[0].up
    assert handler.cancelled()


async def test_a_guardian_that_was_killed_is_replaced(path: str) -> None:
    host = Host(path)
    engine = VllmEngine(host)
    await host.start()
    first = host._guardian
    await engine.check()
    assert host._guardian is first
    first.on_watch = False  # type: ignore[union-attr,misc]
    await engine.check()
    assert host._guardian is not first
    await host.stop()


@pytest.fixture
def model(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model directory that is checked as in reality."""
    monkeypatch.setattr(vllm_host, "Guardian", lambda _: Guard())
    monkeypatch.setattr(vllm_host, "_release", lambda _: None)
    write_model(tmp_path)
    return tmp_path


async def test_a_start_serves_what_the_directory_holds_then(model: Any) -> None:
    host = Host(str(model))
    checked = host.checkpoint.revision
    (model / "tokenizer.json").write_text('{"changed": 1}')
    await host.start()
    started = host.checkpoint.revision
    assert started != checked
    assert started == check_checkpoint(str(model), "causal-lm").revision
    (model / "generation_config.json").write_text('{"eos_token_id": 5}')
    host.built[-1].errored = True  # type: ignore[misc]
    await host.start()  # of a dead engine
    assert host.checkpoint.revision == check_checkpoint(str(model), "causal-lm").revision
    assert host.checkpoint.revision != started
    await host.stop()


async def test_a_directory_that_changes_while_it_is_loaded_is_not_served(model: Any) -> None:
    class Changing(Host):
        changes = True

        def _build(self) -> Any:
            if self.changes:
                (model / "tokenizer.json").write_text('{"changed": 2}')
            return super()._build()

    host = Changing(str(model))
    with pytest.raises(CheckpointError, match="changed while they were loaded"):
        await host.start()
    assert [llm.up for llm in host.built] == [False]
    assert not host.alive
    host.changes = False
    await host.start()
    assert host.alive
    assert host.checkpoint.revision == check_checkpoint(str(model), "causal-lm").revision
    await host.stop()


def test_each_start_forgets_what_vllm_read_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    @lru_cache
    def tokenizer(path: str) -> None:
        read.append(path)

    @cache
    def other(path: str) -> None:
        read.append(path)

    for name, function in (("vllm.tokenizers.registry", tokenizer), ("vllm.entrypoints", other)):
        module = ModuleType(name)
        module.cached = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    for _ in range(2):
        forget_files()
        tokenizer("t")
        other("o")
    assert read == ["t", "o", "t"]


def engine_config(**changes: Any) -> Any:
    """The part of vLLM's configuration that tells how an engine process may end."""
    values: dict[str, Any] = {
        "world_size_across_dp": 1,
        "distributed_executor_backend": "uni",
        "kv_transfer_config": None,
        "kv_events_config": None,
        "ec_transfer_config": None,
        "profiler": None,
        "otlp_traces_endpoint": None,
    } | changes
    whole = SimpleNamespace(**values)
    whole.parallel_config = whole.profiler_config = whole.observability_config = whole
    return whole


@pytest.mark.parametrize(
    "changes",
    [
        {"world_size_across_dp": 2},
        {"distributed_executor_backend": "mp"},
        {"kv_transfer_config": object()},
        {"kv_events_config": object()},
        {"ec_transfer_config": object()},
        {"profiler": "torch"},
        {"otlp_traces_endpoint": "http://collector"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_engine_with_something_to_put_in_order_is_not_killed(changes: dict[str, Any]) -> None:
    assert can_be_killed(engine_config())
    assert not can_be_killed(engine_config(**changes))


class Process:
    """An engine process that may have been closed."""

    def __init__(self, *, closed: bool = False) -> None:
        self.closed, self.kills = closed, 0

    @property
    def pid(self) -> int:
        if self.closed:
            raise ValueError("process object is closed")
        return os.getpid()

    def kill(self) -> None:
        self.kills += 1


def engine_of(processes: list[Any], backend: str) -> Any:
    resources = SimpleNamespace(
        engine_manager=SimpleNamespace(processes=processes), engine_dead=False
    )
    return SimpleNamespace(
        vllm_config=engine_config(distributed_executor_backend=backend),
        engine_core=SimpleNamespace(resources=resources),
    )


@pytest.mark.parametrize("backend", ["uni", "mp"])
def test_the_monitor_expects_the_end_of_an_engine_that_is_killed(backend: str) -> None:
    processes = [Process(closed=True), Process()]
    llm = engine_of(processes, backend)
    with killed_if_safe(llm):
        assert [process.kills for process in processes] == [0, backend == "uni"]
        assert llm.engine_core.resources.engine_dead == (backend == "uni")


# A process with semaphores of its own beside its parent's ends in the way that the argument names.
ENDS = """
import os
import sys
from multiprocessing import get_context
from multiprocessing.synchronize import SemLock
from types import SimpleNamespace

CONTEXT = get_context("spawn")

def hold(parents, connection):
    own = [CONTEXT.Lock()]
    SemLock._make_name = staticmethod(lambda: f"/loky-{os.getpid()}-x")  # as joblib has it
    own.append(CONTEXT.Lock())
    connection.send([lock._semlock.name for lock in own])
    connection.recv()

if __name__ == "__main__":
    from vbon.engine.vllm import ending

    ending.can_be_killed = lambda config: True
    lock, (ours, theirs) = CONTEXT.Lock(), CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(lock, theirs))
    process.start()
    names = ours.recv()
    kill = process.kill if sys.argv[1] == "killed" else lambda: ours.send("end")
    manager = SimpleNamespace(processes=[SimpleNamespace(pid=process.pid, kill=kill)])
    resources = SimpleNamespace(engine_manager=manager)
    llm = SimpleNamespace(engine_core=SimpleNamespace(resources=resources), vllm_config=None)
    with ending.killed_if_safe(llm):
        process.join()
    left = [name for name in names if os.path.exists(f"/dev/shm/sem.{name[1:]}")]
    print(len(names), process.exitcode, left)
"""


@pytest.mark.parametrize(("end", "status"), [("killed", -9), ("by itself", 0)])
def test_nobody_warns_of_the_semaphores_of_an_engine_that_was_killed(
    tmp_path: Path, end: str, status: int
) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    done = subprocess.run(
        [sys.executable, "ends.py", end],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"2 {status} []\n", "")
