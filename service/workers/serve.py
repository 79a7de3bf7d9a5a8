"""The parent of several front-end processes: its models, its limits, its workers and their end."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial

import uvicorn

from service.admission.host import AdmissionHost
from service.app import create_app
from service.auth.middleware import warn_if_open
from service.http.open_files import raise_open_files_limit
from service.runtime.build import RuntimeBuilder, build_runtime
from service.runtime.limits import open_admission
from service.runtime.reload import ModelBuilder, Reloader
from service.runtime.runtime import Runtime
from service.runtime.served_scorer import ServedScorer
from service.runtime.supervisor import Supervisor
from service.server import ALSO_STOPPING, keep_for_good
from service.settings import ServiceSettings
from service.wire import WireError, WireServer
from service.wire.hosted import ENGINES, SCORER, HostedEngines, HostedScorer
from service.wire.limits import limits_server
from service.workers.models import LocalModels
from service.workers.pages import PAGES, MetricPages
from service.workers.places import Places
from service.workers.process import WorkerProcess
from service.workers.reloads import RELOADS, HostedReloads
from vbon.errors import InvalidInputError

logger = logging.getLogger(__name__)

# Time beyond limits.drain_s in which workers close their connections and end.
_END_S = 15.0


def serve_with_workers(
    settings: ServiceSettings,
    build: Callable[[ServiceSettings], Runtime] = build_runtime,
    builder: Callable[[ServiceSettings], ModelBuilder] = RuntimeBuilder,
) -> int:
    """Serve with several front ends until stopped; return the exit status, as with one.

    Args:
        builder: builds models for ``/admin/reload``.

    Raises:
        CheckpointError: a configured model is missing or of the wrong kind; raised before anything starts.
    """
    raise_open_files_limit(settings.limits)
    runtime = build(settings)
    # It checks the rest of the settings here, before there is any other process.
    create_app(runtime)
    config = uvicorn.Config(
        "", settings.host, settings.port, log_config=None, log_level=settings.log_level
    )
    warn_if_open(settings.host, settings.auth)
    with tempfile.TemporaryDirectory(prefix="vbon-") as directory, listening_socket(config) as sock:
        places = Places(directory, secrets.token_hex(16))
        parent = _Parent(settings, runtime, builder(settings), sock, places)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            status = runner.run(parent.run())
    if parent.signal is not None:
        # As a process that a signal ends, so that a supervisor sees what it expects.
        signal.signal(parent.signal, signal.SIG_DFL)
        os.kill(os.getpid(), parent.signal)
    return status


def listening_socket(config: uvicorn.Config) -> socket.socket:
    """The socket that all workers share."""
    sock = config.bind_socket()
    # Connections inherit it. asyncio's own loop turns Nagle's algorithm off only where it made the socket.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class _Parent:
    """The parent while it runs.

    Attributes:
        signal: the signal that ended it; ``None`` if it ended because models could not be loaded.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        runtime: Runtime,
        builder: ModelBuilder,
        sock: socket.socket,
        places: Places,
    ) -> None:
        self.signal: signal.Signals | None = None
        self._settings, self._sock, self._places = settings, sock, places
        self._runtime = runtime
        self._models = LocalModels(runtime)
        reloader = Reloader(runtime, builder, loaded=lambda: self._models.loaded)
        self._reloads = HostedReloads(runtime, reloader)
        self._workers = {
            f"worker-{number}": WorkerProcess(
                f"vbon worker {number}", settings, sock, places, holds=number == 1
            )
            for number in range(1, settings.workers + 1)
        }
        self._asked = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal arrives or a model cannot be loaded; 1 in that case, else 0."""
        self._listen_to_signals()
        async with AsyncExitStack() as stack:
            for server in self._servers():
                try:
                    await server.start()
                except WireError as error:
                    raise InvalidInputError(
                        f"the workers' sockets cannot be made in {self._places.directory}: "
                        f"{error.__cause__}; set TMPDIR to a directory that can be written and whose path "
                        "has at most 80 bytes",
                        field="workers",
                    ) from error
                stack.push_async_callback(server.stop)
            stack.push_async_callback(self._models.stop)
            stack.push_async_callback(self._end_workers)
            await asyncio.gather(*(worker.start() for worker in self._workers.values()))
            supervisor = self._supervisor()
            supervisor.start()
            stack.push_async_callback(supervisor.stop)
            return await self._until_asked()

    async def _until_asked(self) -> int:
        loading = asyncio.create_task(self._models.start(), name="load-models")
        asked = asyncio.create_task(self._asked.wait())
        await asyncio.wait({loading, asked}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and (error := loading.exception()) is not None:
            logger.error("start-up failed: %s", error)
            asked.cancel()
            return 1
        if loading.done():
            keep_for_good()
            await asked
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        return 0

    def _servers(self) -> list[WireServer]:
        places, settings = self._places, self._settings
        limits = AdmissionHost(open_admission(settings.limits), front_ends=settings.workers)
        served = [
            WireServer(
                places.engines.url,
                HostedEngines(self._models.engines, self._using),
                ENGINES,
                secret=places.secret,
            ),
            WireServer(
                places.metrics.url,
                MetricPages(self._runtime.metrics.registry),
                PAGES,
                secret=places.secret,
            ),
            WireServer(places.reloads.url, self._reloads, RELOADS, secret=places.secret),
            limits_server(places.limits.url, limits, places.secret),
        ]
        for name in self._models.scorers:
            hosted = HostedScorer(partial(self._scorer, name), self._using)
            served.append(WireServer(places.of(name).url, hosted, SCORER, secret=places.secret))
        return served

    def _scorer(self, name: str) -> ServedScorer:
        return self._runtime.scorers[name]

    def _using(self, part: object) -> AbstractAsyncContextManager[None]:
        """Count a call of a worker as a use of an engine or scorer, which a reload waits for."""
        return self._runtime.in_flight.track(None, "", (part,))

    def _supervisor(self) -> Supervisor:
        restarts = self._settings.restarts
        for name in self._workers:
            self._runtime.metrics.restarts.labels(name)
        return Supervisor(
            self._workers,
            backoff_s=restarts.backoff_s,
            max_backoff_s=restarts.max_backoff_s,
            on_recovered=self._runtime.metrics.recovered,
        )

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        also = [one for one in ALSO_STOPPING if signal.getsignal(one) is signal.SIG_DFL]
        for one in (signal.SIGTERM, signal.SIGINT, *also):
            loop.add_signal_handler(one, self._be_asked, one)

    def _be_asked(self, by: signal.Signals) -> None:
        """Let the workers drain on the first signal, and end them at once on the second."""
        if self.signal is not None:
            for worker in self._workers.values():
                worker.kill()
        self.signal = self.signal or by
        self._asked.set()

    async def _end_workers(self) -> None:
        """Let all workers finish their requests, and end those that take too long."""
        for worker in self._workers.values():
            worker.ask_to_end()
        # Without this copy of the socket, new connections are refused once the workers have closed theirs.
        self._sock.close()
        ended = asyncio.gather(*(worker.until_ended() for worker in self._workers.values()))
        try:
            async with asyncio.timeout(self._settings.limits.drain_s + _END_S):
                await ended
        except TimeoutError:
            logger.warning("a worker did not end in time and is killed")
        for worker in self._workers.values():
            worker.close()
