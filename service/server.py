"""Runs the application under uvicorn until a signal or a failed start-up."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import socket
from types import FrameType

import uvicorn

from service.app import create_app
from service.auth.middleware import warn_if_open
from service.http.open_files import raise_open_files_limit
from service.http.uvicorn_protocol import http_options
from service.runtime.build import RuntimeBuilder, build_runtime
from service.runtime.runtime import Runtime
from service.settings import ServiceSettings

logger = logging.getLogger(__name__)

# Requests that are on their way when the signal comes are told so, in place of a reset connection.
LAST_CALL_S = 0.25


def keep_for_good() -> None:
    """Tell the garbage collector that what is loaded by now stays, and to look less often.

    It walks all of torch and vLLM otherwise, time and again: a third of the requests a second of a
    small policy on a small machine (docs/log.md). What requests in flight hold, a few hundred objects
    each, is no garbage either, which by default it is searched for after every 700.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class DrainingServer(uvicorn.Server):
    """Lets requests under way finish when it is told to stop, and tells those that cannot why.

    Uvicorn itself stops listening, waits for open requests, and after its own limit drops their
    connections without a word.
    """

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._draining: asyncio.Task[int] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal; the second one ends everything at once."""
        if self._draining is None:
            loop = asyncio.get_running_loop()
            self._draining = loop.create_task(self._drain(), name="drain")
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """A little later than uvicorn would: what has reached the socket by now is answered 503."""
        if not self.force_exit:
            await asyncio.sleep(LAST_CALL_S)
        await super().shutdown(sockets)

    async def _drain(self) -> int:
        limit_s = self._runtime.settings.limits.drain_s
        under_way = len(self._runtime.in_flight)
        logger.info("stopping; %d requests may go on for %g s", under_way, limit_s)
        ended = await self._runtime.in_flight.drain(limit_s)
        if ended:
            logger.warning(
                "%d requests were ended with an error: no answer in %g s", ended, limit_s
            )
        return ended


def serve_until_stopped(settings: ServiceSettings) -> int:
    """Serve; the exit status: 1 if the models could not be loaded, else 0.

    After a signal and a graceful shutdown uvicorn raises the signal again, so the process then ends
    as a supervisor expects of it: by SIGTERM (143) or SIGINT (130).

    Raises:
        CheckpointError: a configured model is missing or of the wrong kind, before anything starts.
    """
    raise_open_files_limit(settings.limits)
    runtime = build_runtime(settings)

    def stop_server() -> None:
        server.should_exit = True

    app = create_app(
        runtime, on_ready=keep_for_good, on_failure=stop_server, rebuild=RuntimeBuilder(settings)
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        # Ours ends requests with an error of their own; this is for connections it knows nothing of.
        timeout_graceful_shutdown=math.ceil(settings.limits.drain_s) + 5,
        ws="none",
        server_header=False,
        **http_options(settings.limits),
    )
    server = DrainingServer(config, runtime)
    logger.info("listening on http://%s:%d; models are loading", settings.host, settings.port)
    warn_if_open(settings.host, settings.auth)
    server.run()
    return 1 if runtime.failure is not None or not server.started else 0
