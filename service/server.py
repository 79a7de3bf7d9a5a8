"""Runs the application under uvicorn until a signal arrives or its models cannot be loaded."""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.auth.middleware import warn_if_open
from service.http.open_files import raise_open_files_limit
from service.http.uvicorn_protocol import http_options
from service.runtime.build import RuntimeBuilder, build_runtime
from service.runtime.runtime import Runtime
from service.settings import ServiceSettings

logger = logging.getLogger(__name__)

# Signals that would otherwise end the process at once, from a closed terminal or from tools that rotate logs.
ALSO_STOPPING = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Requests that arrive this soon after the signal get a response (503) instead of a reset connection.
LAST_CALL_S = 0.25


def keep_for_good() -> None:
    """Exempt all loaded objects from garbage collection, and collect less often.

    Otherwise the collector walks all objects of torch and vLLM again and again, which cost a third of the
    requests a second of a small policy on a small machine (docs/log.md). Requests in flight hold several
    hundred live objects each, so the default of one collection for every 700 new objects is too often.
    """
    gc.collect()
    gc.freeze()
    # At the end all is collected after all, or libraries such as triton take what is left for leaks.
    atexit.register(gc.unfreeze)
    gc.set_threshold(50_000, 20, 100)


class DrainingServer(uvicorn.Server):
    """Lets running requests finish when the server is stopped, and ends late ones with an error.

    uvicorn alone stops listening and waits for open requests, but after its own limit it drops their
    connections without a response.
    """

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._draining: asyncio.Task[int] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Treat :data:`ALSO_STOPPING` as SIGTERM, except those that are ignored, as SIGHUP is under nohup."""
        with super().capture_signals():
            ours = (
                [sig for sig in ALSO_STOPPING if signal.getsignal(sig) is signal.SIG_DFL]
                if threading.current_thread() is threading.main_thread()
                else []
            )
            for sig in ours:
                signal.signal(sig, self.handle_exit)
            try:
                yield
            finally:  # before uvicorn raises the signal again, of which the process then ends
                for sig in ours:
                    signal.signal(sig, signal.SIG_DFL)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain on the first signal; a second signal ends everything at once."""
        if self._draining is None:
            loop = asyncio.get_running_loop()
            self._draining = loop.create_task(self._drain(), name="drain")
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down ``LAST_CALL_S`` later than uvicorn would.

        Requests that have reached the socket by then are answered with 503.
        """
        if not self.force_exit:
            await asyncio.sleep(LAST_CALL_S)
        await super().shutdown(sockets)

    async def _drain(self) -> int:
        limit_s = self._runtime.settings.limits.drain_s
        under_way = len(self._runtime.in_flight)
        logger.info("stopping; %d running requests have %g s to finish", under_way, limit_s)
        ended = await self._runtime.in_flight.drain(limit_s)
        if ended:
            logger.warning(
                "%d requests did not finish within %g s and were ended with an error",
                ended,
                limit_s,
            )
        return ended


def serve_until_stopped(
    settings: ServiceSettings, build: Callable[[ServiceSettings], Runtime] = build_runtime
) -> int:
    """Serve until stopped; return the exit status: 1 if the models could not be loaded, else 0.

    After a signal and a graceful shutdown, uvicorn raises the signal again, so the process ends with the
    status that a supervisor expects: 128 and the signal's number, such as 143 for SIGTERM.

    Raises:
        CheckpointError: a configured model is missing or of the wrong kind; raised before anything starts.
    """
    open_files = raise_open_files_limit(settings.limits)
    runtime = build(settings)

    def stop_server() -> None:
        server.should_exit = True

    app = create_app(
        runtime, on_ready=keep_for_good, on_failure=stop_server, rebuild=RuntimeBuilder(settings)
    )
    config = server_config(settings, app, open_files)
    server = DrainingServer(config, runtime)
    logger.info("listening on http://%s:%d; models are loading", settings.host, settings.port)
    warn_if_open(settings.host, settings.auth)
    server.run()
    return 1 if runtime.failure is not None or not server.started else 0


def server_config(
    settings: ServiceSettings, app: FastAPI, open_files: int | None
) -> uvicorn.Config:
    """The configuration of uvicorn for this application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        # DrainingServer ends requests with an error; this limit is for all other connections.
        timeout_graceful_shutdown=math.ceil(settings.limits.drain_s) + 5,
        ws="none",
        server_header=False,
        **http_options(settings.limits, open_files, app.state.early_refusal),
    )
