"""The FastAPI application around a runtime."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from bestofn import __version__
from service.auth import ApiKeyMiddleware, open_keyring
from service.blind import OpenPairs
from service.browsers import SecurityHeadersMiddleware
from service.errors import add_error_handlers
from service.middleware import BodyLimitMiddleware, JsonByDefaultMiddleware, RequestIdMiddleware
from service.records import Records
from service.reload import Rebuild, Reloader
from service.routes import admin, compare, generate, health, modes, openai, preferences
from service.runtime import Runtime
from service.schemas import ANY_ROUTE

logger = logging.getLogger(__name__)


def create_app(
    runtime: Runtime,
    *,
    on_ready: Callable[[], object] | None = None,
    on_failure: Callable[[], object] | None = None,
    rebuild: Rebuild | None = None,
) -> FastAPI:
    """The application; models load in the background while ``/healthz`` already answers.

    Args:
        runtime: owned by the application from here on.
        on_ready: called once when everything is loaded.
        on_failure: called once if loading fails, so that a server can exit.
        rebuild: makes models anew for ``/admin/reload``, which there is not without it.

    Raises:
        DataError: the keys file cannot be used.
    """
    auth, limits = runtime.settings.auth, runtime.settings.limits
    keyring = open_keyring(auth)

    records = Records(runtime.settings.store)

    async def load() -> None:
        try:
            await runtime.start()
            if on_ready is not None:
                on_ready()
        except Exception as error:  # whatever stops a model from loading ends the process
            logger.error("start-up failed: %s", error)
            if on_failure is not None:
                on_failure()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        loading = asyncio.create_task(load(), name="load-models")
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await runtime.stop()
            records.close()

    app = FastAPI(
        title="bestofn",
        version=__version__,
        summary="Live best-of-N and its distilled one-sample twin, measured side by side.",
        lifespan=lifespan,
        responses=ANY_ROUTE,
    )
    app.state.runtime = runtime
    app.state.records = records
    app.state.reloader = None if rebuild is None else Reloader(runtime, rebuild)
    app.state.open_pairs = OpenPairs()
    for module in (generate, openai, compare, modes, health, preferences, admin):
        app.include_router(module.router)
    add_error_handlers(app)
    # The last added runs first: every answer, a refused body's too, carries a request id.
    app.add_middleware(JsonByDefaultMiddleware)
    app.add_middleware(
        BodyLimitMiddleware, max_bytes=limits.max_body_bytes, timeout_s=limits.receive_timeout_s
    )
    app.add_middleware(ApiKeyMiddleware, keyring=keyring, open_metrics=auth.open_metrics)
    if runtime.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=runtime.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["retry-after", "x-request-id"],
        )
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(RequestIdMiddleware)
    return app
