"""Runs the application under uvicorn until a signal or a failed start-up."""

from __future__ import annotations

import gc
import logging

import uvicorn

from service.app import create_app
from service.assembly import build_runtime
from service.auth import warn_if_open
from service.http_protocol import http_options
from service.settings import ServiceSettings

logger = logging.getLogger(__name__)


def keep_for_good() -> None:
    """Tell the garbage collector that what is loaded by now stays, and to look less often.

    It walks all of torch and vLLM otherwise, time and again: a third of the requests a second of a
    small policy on a small machine (docs/log.md). What requests in flight hold, a few hundred objects
    each, is no garbage either, which by default it is searched for after every 700.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def serve_until_stopped(settings: ServiceSettings) -> int:
    """Serve; the exit status: 1 if the models could not be loaded, else 0.

    After a signal and a graceful shutdown uvicorn raises the signal again, so the process then ends
    as a supervisor expects of it: by SIGTERM (143) or SIGINT (130).

    Raises:
        CheckpointError: a configured model is missing or of the wrong kind, before anything starts.
    """
    runtime = build_runtime(settings)

    def stop_server() -> None:
        server.should_exit = True

    app = create_app(runtime, on_ready=keep_for_good, on_failure=stop_server)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        timeout_graceful_shutdown=10,
        ws="none",
        server_header=False,
        **http_options(settings.limits),
    )
    server = uvicorn.Server(config)
    logger.info("listening on http://%s:%d; models are loading", settings.host, settings.port)
    warn_if_open(settings.host, settings.auth)
    server.run()
    return 1 if runtime.failure is not None or not server.started else 0
