"""Starts services, their engines and reward workers as forks of a process in which all is imported.

Each is a process of its own below its starter, and does what the real one does from its ``main`` on: only
the imports are spared, some six seconds of CPU time for a service and as many for every engine. Services
that are started as users start them are those of ``vbon study`` and of ``python -m tests.faults``.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Sequence
from multiprocessing import forkserver, reduction, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

import tests.commands  # noqa: F401  (it would set what is imported without an engine)

ROOT = Path(__file__).resolve().parents[1]
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


class ForkedService(psutil.Process):
    """A running ``python -m service`` that was forked.

    Args:
        arguments: those of the command.
        log: what it prints is written there.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        order = (list(arguments), str(log), dict(os.environ))
        self._process = ForkServerContext().Process(target=_serve, args=order)
        self._process.start()
        super().__init__(self._process.pid)

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


def _serve(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """Be ``python -m service``."""
    from service.__main__ import main
    from vbon.rewards import worker

    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    _keep_a_process_that_forks()
    fork_engines()
    worker.multiprocessing = SimpleNamespace(get_context=lambda _: _Context())  # type: ignore[attr-defined]
    sys.argv[1:] = arguments
    try:
        main()
    finally:
        atexit._run_exitfuncs()


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
