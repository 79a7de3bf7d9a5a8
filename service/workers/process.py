"""One worker process, as its parent starts, restarts and ends it."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from service.settings import ServiceSettings
from service.workers.places import Places
from service.workers.worker import run_worker
from vbon.child_output import relayed_output

_LOOK_S = 0.02


class WorkerProcess:
    """A front end in a process of its own, which ends when this process ends, for whatever reason.

    Args:
        sock: the listening socket that all workers share.
        holds: whether this one holds the load tests, pairs and tables of all workers.
    """

    def __init__(
        self,
        name: str,
        settings: ServiceSettings,
        sock: socket.socket,
        places: Places,
        *,
        holds: bool = False,
    ) -> None:
        self._name, self._settings, self._sock, self._places = name, settings, sock, places
        self._holds = holds
        self._process: BaseProcess | None = None
        # The worker sees the end of this pipe close.
        self._lifeline: Connection | None = None

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.is_alive()

    @property
    def pid(self) -> int | None:
        """The process's id; ``None`` before it is started."""
        return None if self._process is None else self._process.pid

    async def check(self) -> None:
        """Do nothing: a worker has no sign of a hang."""

    async def start(self) -> None:
        """Start the process, also in place of one that has ended."""
        self.close()
        context = multiprocessing.get_context("spawn")
        theirs, ours = context.Pipe(duplex=False)
        # A daemon may have no children of its own, and a worker needs none.
        process = context.Process(
            target=run_worker,
            args=(self._settings, self._sock, self._places, theirs, self._holds),
            name=self._name,
            daemon=True,
        )
        with relayed_output():
            process.start()
        theirs.close()
        self._process, self._lifeline = process, ours

    def ask_to_end(self) -> None:
        """Let the worker drain and end."""
        if self._process is not None and self._process.is_alive():
            self._process.terminate()

    def kill(self) -> None:
        """End the worker at once."""
        if self._process is not None and self._process.is_alive():
            self._process.kill()

    async def until_ended(self) -> None:
        """Wait until the process has ended."""
        while self.alive:  # noqa: ASYNC110  (a process has no event)
            await asyncio.sleep(_LOOK_S)

    def close(self) -> None:
        """Free what is left of a process that has ended; one that runs is killed."""
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None
        if self._process is not None:
            self.kill()
            self._process.join()
            with suppress(ValueError):
                self._process.close()
            self._process = None
