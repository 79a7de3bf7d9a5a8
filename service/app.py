"""The FastAPI application around a runtime."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from service.admission.load_shedding import LoadSheddingMiddleware
from service.auth.middleware import ApiKeyMiddleware, open_keyring
from service.evaluation.preference_pairs import PendingPairs
from service.hosted_loadtests.report_links import ReportLinks
from service.hosted_loadtests.runs import LoadTestRuns
from service.http.middleware import (
    BodyLimitMiddleware,
    JsonByDefaultMiddleware,
    RequestIdMiddleware,
)
from service.http.security_headers import SecurityHeadersMiddleware
from service.observability.access_log import AccessLogMiddleware
from service.observability.tracing import open_tracing
from service.routes import (
    admin,
    compare,
    frontier,
    generate,
    health,
    loadtests,
    modes,
    openai,
    page,
    preferences,
)
from service.routes.errors import UnforeseenErrorMiddleware, add_error_handlers
from service.runtime.reload import ModelBuilder, Reloader
from service.runtime.runtime import Runtime
from service.schemas import ANY_ROUTE
from service.store.async_store import AsyncStore
from vbon import __version__

if TYPE_CHECKING:
    from service.observability.otel_spans import Tracing

logger = logging.getLogger(__name__)


def create_app(
    runtime: Runtime,
    *,
    on_ready: Callable[[], object] | None = None,
    on_failure: Callable[[], object] | None = None,
    rebuild: ModelBuilder | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application; models load in the background while ``/healthz`` already answers.

    Args:
        runtime: owned by the application from here on.
        on_ready: called once when everything is loaded.
        on_failure: called once if loading fails, so that a server can exit.
        rebuild: makes models anew for ``/admin/reload``, which there is not without it.
        tracing: where spans go; by default where the settings say, if they say so.

    Raises:
        DataError: the keys file cannot be used.
        InvalidInputError: traces are asked for and OpenTelemetry is not installed.
    """
    auth, limits = runtime.settings.auth, runtime.settings.limits
    keyring = open_keyring(auth)
    tracing = tracing or open_tracing(runtime.settings.otel)
    store = AsyncStore(runtime.settings.store)
    load_test_runs = LoadTestRuns(store)

    async def load() -> None:
        try:
            await runtime.start()
            if on_ready is not None:
                on_ready()
        except Exception as error:  # whatever stops a model from loading ends the process
            logger.error("start-up failed: %s", error)
            if on_failure is not None:
                on_failure()

    def count_shed(mode: str) -> None:
        known = mode if mode in runtime.modes else "unknown"
        runtime.metrics.errors.labels(known, "overloaded").inc()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        loading = asyncio.create_task(load(), name="load-models")
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await load_test_runs.close()
            await runtime.stop()
            store.close()
            if tracing is not None:
                await tracing.stop()

    app = FastAPI(
        title="vbon",
        version=__version__,
        summary="Live best-of-N and its distilled one-sample twin, measured side by side.",
        lifespan=lifespan,
        responses=ANY_ROUTE,
        # FastAPI's own would load Swagger UI from another host; ours is in service/routes/page.py.
        docs_url=None,
        redoc_url=None,
    )
    app.state.runtime = runtime
    app.state.store = store
    app.state.reloader = None if rebuild is None else Reloader(runtime, rebuild)
    app.state.pending_pairs = PendingPairs()
    app.state.load_test_runs = load_test_runs
    app.state.report_links = ReportLinks()
    for module in (
        generate,
        openai,
        compare,
        modes,
        health,
        preferences,
        admin,
        loadtests,
        frontier,
        page,
    ):
        app.include_router(module.router)
    add_error_handlers(app)
    # The last added runs first: every answer, a refused body's too, carries a request id.
    app.add_middleware(JsonByDefaultMiddleware)
    app.add_middleware(
        LoadSheddingMiddleware,
        admission=runtime.admission,
        default_mode=runtime.settings.default_mode,
        on_shed=count_shed,
    )
    app.add_middleware(
        BodyLimitMiddleware, max_bytes=limits.max_body_bytes, timeout_s=limits.receive_timeout_s
    )
    app.add_middleware(ApiKeyMiddleware, keyring=keyring, open_metrics=auth.open_metrics)
    app.add_middleware(UnforeseenErrorMiddleware)
    if runtime.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=runtime.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["retry-after", "x-request-id"],
        )
    app.add_middleware(SecurityHeadersMiddleware)
    if tracing is not None:
        from service.observability.otel_spans import TracingMiddleware

        app.add_middleware(TracingMiddleware, tracing=tracing)
    if runtime.settings.logs_access:
        app.add_middleware(AccessLogMiddleware)
    app.add_middleware(RequestIdMiddleware)
    return app
