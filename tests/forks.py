"""Starts services, their engines and reward workers as forks of a process in which all is imported.

Each is a process of its own below its starter, and does what the real one does from its ``main`` on: only
the imports are spared, some six seconds of CPU time for a service and as many for every engine. Services
that are started as users start them are those of ``vbon study`` and of ``python -m tests.faults``.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import os
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from multiprocessing import forkserver, reduction, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import psutil

import tests.commands  # noqa: F401  (it would set what is imported without an engine)

ROOT = Path(__file__).resolve().parents[1]
STOP_S = 60.0
# Of the process that forks, which is started at the first need of it.
forkserver.set_forkserver_preload(["tests.commands_preloaded", "tests.engines_preloaded"])  # type: ignore[attr-defined]


class _Spawned(ForkServerProcess):
    """A process with the environment and the output of the one that starts it, as one that is spawned."""

    _start_method = "spawn"  # of its own children

    def __getstate__(self) -> dict[str, Any]:
        streams = [reduction.DupFd(fd) for fd in (1, 2)]
        return self.__dict__ | {"given": (dict(os.environ), streams)}

    def run(self) -> None:
        environment, streams = self.__dict__.pop("given")
        os.environ.clear()
        os.environ.update(environment)
        for fd, stream in enumerate(streams, 1):
            os.dup2(stream.detach(), fd)
            os.close(stream.detach())
        import setproctitle  # comes with vLLM

        setproctitle.setproctitle("multiprocessing.spawn")  # the name by which faults find it
        super().run()


class _Context(ForkServerContext):
    Process = _Spawned  # type: ignore[assignment]


def fork_engines() -> None:
    """Have vLLM's engines be forked, where it spawns them, when this process starts one."""
    from vllm.v1.engine import utils

    utils.get_mp_context = _Context


class _Forked(psutil.Process):
    """A running command that was forked.

    Args:
        arguments: those of the command.
        log: what it prints is written there.
        cwd: its working directory.
        env: its environment; by default this process's.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ) -> None:
        order = (list(arguments), str(log), str(cwd), dict(os.environ if env is None else env))
        self._process = ForkServerContext().Process(target=self._run, args=order)
        self._process.start()
        super().__init__(self._process.pid)

    @staticmethod
    def _run(arguments: list[str], log: str, cwd: str, environment: dict[str, str]) -> None:
        raise NotImplementedError

    def poll(self) -> int | None:
        """Its exit status once it has ended."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status."""
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise psutil.TimeoutExpired(timeout, self.pid)
        return status


class ForkedService(_Forked):
    """A running ``python -m service`` that was forked."""

    @staticmethod
    def _run(arguments: list[str], log: str, cwd: str, environment: dict[str, str]) -> None:
        from service.__main__ import main
        from vbon.rewards import worker

        _begin(arguments, log, cwd, environment)
        worker.multiprocessing = SimpleNamespace(get_context=lambda _: _Context())  # type: ignore[attr-defined]
        try:
            main()
        finally:
            atexit._run_exitfuncs()


class ForkedTraining(_Forked):
    """A running ``python -m training`` that was forked, over vLLM.

    It ends as an interpreter does, which takes its modules apart: what speaks up then is heard.
    """

    @staticmethod
    def _run(arguments: list[str], log: str, cwd: str, environment: dict[str, str]) -> None:
        from training.__main__ import main

        _begin(arguments, log, cwd, environment)
        sys.path[:0] = [cwd, *environment.get("PYTHONPATH", "").split(os.pathsep)]
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        ctypes.pythonapi.Py_Exit(ctypes.c_int(code))


class _ForkedModule(_Forked):
    """A running ``python -m MODULE ...`` over vLLM; the module is the first of the arguments."""

    @staticmethod
    def _run(arguments: list[str], log: str, cwd: str, environment: dict[str, str]) -> None:
        _begin(arguments[1:], log, cwd, environment)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)

    @property
    def returncode(self) -> int | None:
        """Its exit status once it has ended."""
        return self.poll()


@asynccontextmanager
async def running_forked(
    command: Sequence[str], *, env: Mapping[str, str] | None = None
) -> AsyncGenerator[tuple[Any, BinaryIO], None]:
    """Run ``[python, "-m", MODULE, ...]`` as :func:`service.bench.processes.running` does, but forked."""
    _, flag, *arguments = map(str, command)
    assert flag == "-m"
    with tempfile.NamedTemporaryFile() as log:
        process = _ForkedModule(arguments, Path(log.name), env=env)
        try:
            yield process, log.file
        finally:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
            with suppress(psutil.TimeoutExpired):
                await asyncio.to_thread(process.wait, STOP_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)


def _begin(arguments: list[str], log: str, cwd: str, environment: dict[str, str]) -> None:
    """Be a process of its own, as a shell would start it, whose children are forked too."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    _keep_a_process_that_forks()
    fork_engines()
    sys.argv[1:] = arguments


def _keep_a_process_that_forks() -> None:
    """Fork the process that forks this one's children, before this one has threads or connections."""
    tracker = resource_tracker._resource_tracker  # type: ignore[attr-defined]
    tracker._fd = tracker._pid = None  # that of the tests
    listener = socket.socket(socket.AF_UNIX)
    address = f"\0forks-{os.getpid()}"  # no file, which would be left where this process is killed
    listener.bind(address)
    listener.listen()
    ends_with_us, alive = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(alive)
            forkserver.main(listener.fileno(), ends_with_us, [])
        finally:
            os._exit(0)
    listener.close()
    os.close(ends_with_us)
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address, server._forkserver_alive_fd = address, alive
    server._forkserver_pid = pid
