"""The FastAPI application around a runtime: its state, routes and middleware."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from service.admission.load_shedding import EarlyRefusal, LoadSheddingMiddleware, Shedding
from service.auth.middleware import ApiKeyMiddleware, caller_finder, open_keyring
from service.auth.watch import follow_keys
from service.auto.exposition import AutoMetrics
from service.auto.live import LiveAuto
from service.auto.tune_runs import TuneRuns
from service.distil.collector import Collector
from service.distil.exposition import DistilMetrics
from service.distil.live_rollout import LiveRollout
from service.distil.rollout_metrics import RolloutMetrics
from service.evaluation.preference_pairs import PendingPairs
from service.held.forwarding import ForwardingMiddleware, Holder
from service.hosted_loadtests.report_links import ReportLinks
from service.hosted_loadtests.runs import LoadTestRuns
from service.http.known_hosts import KnownHosts, KnownHostsMiddleware
from service.http.middleware import (
    BodyLimitMiddleware,
    JsonByDefaultMiddleware,
    RequestIdMiddleware,
)
from service.http.security_headers import SecurityHeadersMiddleware
from service.observability.access_log import AccessLogMiddleware, log_request
from service.observability.tracing import open_tracing
from service.page import page_contents
from service.routes import (
    admin,
    auto,
    compare,
    decision,
    distil,
    distil_checkpoints,
    evaluation,
    frontier,
    generate,
    health,
    loadtests,
    modes,
    openai,
    page,
    preferences,
    score,
    tune,
)
from service.routes.errors import UnhandledErrorMiddleware, add_error_handlers
from service.runtime.expected import serve_expected
from service.runtime.reload import ModelBuilder, Reloader, Reloads
from service.runtime.runtime import Runtime
from service.schemas import ANY_ROUTE
from service.store.async_store import AsyncStore
from vbon import __version__

if TYPE_CHECKING:
    from service.auth.keys import Keyring
    from service.observability.otel_spans import Tracing

logger = logging.getLogger(__name__)


_ROUTERS = (
    generate.router,
    openai.router,
    score.router,
    compare.router,
    modes.router,
    health.router,
    preferences.router,
    admin.router,
    auto.router,
    tune.router,
    distil.router,
    distil_checkpoints.router,
    loadtests.router,
    frontier.router,
    decision.router,
    evaluation.router,
    page.router,
)


_ABOUT: dict[str, Any] = {
    "title": "vbon",
    "version": __version__,
    "summary": "Live best-of-N and its distilled one-sample twin, measured side by side.",
}


class _Application(FastAPI):
    """A FastAPI application that shares its OpenAPI document with all others, as it does its routes."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; the caller must not change it."""
        return _openapi_document()


def create_app(
    runtime: Runtime,
    *,
    on_ready: Callable[[], object] | None = None,
    on_failure: Callable[[], object] | None = None,
    rebuild: ModelBuilder | None = None,
    tracing: Tracing | None = None,
    holder: Holder | None = None,
    reloads: Reloads | None = None,
) -> FastAPI:
    """Build the application. Models load in the background while ``/healthz`` already answers.

    Args:
        runtime: owned by the application from here on.
        on_ready: called once when every model is loaded.
        on_failure: called once if loading fails, so that a server can exit.
        rebuild: builds models for ``/admin/reload``, which answers 404 without it.
        tracing: exports spans; by default as the settings say.
        holder: serves the requests whose state another process has; ``None`` if this one has it.
        reloads: reloads models for ``/admin/reload``; by default those of this process, by ``rebuild``.

    Raises:
        DataError: the file of API keys, or that of measured settings, cannot be used.
        InvalidInputError: tracing is configured and OpenTelemetry is not installed, or the redaction of
            collected answers cannot be imported.
        ExportError: answers are to be collected in a directory that cannot be used.
    """
    keyring = open_keyring(runtime.settings.auth)
    tracing = tracing or open_tracing(runtime.settings.otel)
    store = AsyncStore(runtime.settings.store)
    load_test_runs = LoadTestRuns(store)
    collector = _open_collector(runtime)
    rollout = _open_rollout(runtime, rebuild, store)
    by_price = LiveAuto(runtime, store)
    AutoMetrics(by_price).register(runtime.metrics.registry)
    known = KnownHosts(runtime.settings.own_names)
    shedding = Shedding(
        runtime.admission,
        default_mode=runtime.settings.default_mode,
        on_shed=lambda mode: runtime.count_error(mode, "overloaded"),
    )
    app = _Application(
        **_ABOUT,
        lifespan=_lifespan(
            runtime,
            store,
            load_test_runs,
            collector,
            rollout,
            by_price,
            keyring,
            tracing,
            rebuild,
            on_ready,
            on_failure,
            holder,
        ),
        responses=ANY_ROUTE,
        middleware=_middleware(runtime, keyring, known, shedding, tracing, holder),
        # FastAPI's own pages load Swagger UI from another host; service/routes/page.py serves ours.
        docs_url=None,
        # A redirect would lead to the host that the request names.
        redirect_slashes=False,
        redoc_url=None,
    )
    # service/routes/dependencies.py and request_state.py read these.
    app.state.runtime = runtime
    app.state.store = store
    app.state.reloader = reloads or (None if rebuild is None else Reloader(runtime, rebuild))
    app.state.pending_pairs = PendingPairs()
    app.state.load_test_runs = load_test_runs
    app.state.report_links = ReportLinks()
    app.state.collector = collector
    app.state.rollout = rollout
    app.state.auto = by_price
    app.state.tune_runs = TuneRuns(store, by_price.table)
    # service/server.py gives it to the protocol. Traced requests get spans, which the middleware makes.
    app.state.early_refusal = None
    if tracing is None:
        app.state.early_refusal = EarlyRefusal(
            shedding,
            caller_of=caller_finder(keyring, known),
            log=log_request if runtime.settings.logs_access else None,
        )
    app.router.routes.extend(_routes())
    add_error_handlers(app)
    return app


@cache
def _routes() -> list[BaseRoute]:
    """All routes. They hold no state of an application, and building them is slow, so it is done once."""
    router = APIRouter(responses=ANY_ROUTE)
    for part in _ROUTERS:
        router.include_router(part)
    return router.routes


@cache
def _openapi_document() -> dict[str, Any]:
    """The description of all routes. Making it takes 0.3 s, so it is done once."""
    return get_openapi(**_ABOUT, routes=_routes())


def _lifespan(
    runtime: Runtime,
    store: AsyncStore,
    load_test_runs: LoadTestRuns,
    collector: Collector | None,
    rollout: LiveRollout | None,
    by_price: LiveAuto,
    keyring: Keyring | None,
    tracing: Tracing | None,
    builder: ModelBuilder | None,
    on_ready: Callable[[], object] | None,
    on_failure: Callable[[], object] | None,
    holder: Holder | None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """The application's lifespan: loads models in the background, and at the end stops everything."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        await asyncio.to_thread(page_contents)
        beside = [
            asyncio.create_task(
                _load(runtime, builder, rollout, by_price, on_ready, on_failure),
                name="load-models",
            )
        ]
        if keyring is not None:
            beside.append(asyncio.create_task(follow_keys(keyring), name="follow-keys"))
        if collector is not None:
            collector.start()
        by_price.table.start()
        if holder is not None:
            await holder.start(by_price)
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await load_test_runs.close()
            if holder is not None:
                await holder.stop()
            await by_price.table.stop()
            if rollout is not None:
                await rollout.stop()
            await runtime.stop()
            if collector is not None:
                await collector.stop()
            store.close()
            if tracing is not None:
                await tracing.stop()

    return lifespan


def _open_collector(runtime: Runtime) -> Collector | None:
    """The collector of answers that the settings ask for, connected to the runtime."""
    if runtime.settings.distil.dir is None:
        return None
    collector = Collector(runtime.settings.distil)
    DistilMetrics(collector.writer).register(runtime.metrics.registry)
    collector.progress.register(runtime.metrics.registry)
    runtime.collect = collector.offer
    return collector


def _open_rollout(
    runtime: Runtime, builder: ModelBuilder | None, store: AsyncStore
) -> LiveRollout | None:
    """The rollout of checkpoints that the settings ask for, connected to the runtime."""
    if runtime.settings.distil.policy is None or builder is None:
        return None
    if runtime.settings.auth.keys_file is None:
        logger.warning(
            "distil.policy is set and auth.keys_file is not: nobody can submit, promote or roll back "
            "checkpoints, because /distil requires an admin's key; create one with "
            "`vbon keys add root --role admin --file keys.jsonl`, and start with --auth.keys-file keys.jsonl"
        )
    rollout = LiveRollout(runtime, builder, store)
    RolloutMetrics(rollout).register(runtime.metrics.registry)
    return rollout


async def _load(
    runtime: Runtime,
    builder: ModelBuilder | None,
    rollout: LiveRollout | None,
    by_price: LiveAuto,
    on_ready: Callable[[], object] | None,
    on_failure: Callable[[], object] | None,
) -> None:
    try:
        await runtime.start()
        if rollout is not None:
            rollout.start()
        await by_price.table.until_read()
        if on_ready is not None:
            on_ready()
    except Exception as error:  # any failure to load a model must end the process, whatever it is
        logger.error("start-up failed: %s", error)
        if on_failure is not None:
            on_failure()
        return
    if builder is not None:
        await serve_expected(runtime, builder)


def _middleware(
    runtime: Runtime,
    keyring: Keyring | None,
    known: KnownHosts,
    shedding: Shedding,
    tracing: Tracing | None,
    holder: Holder | None,
) -> list[Middleware]:
    """The middleware, outermost first: a request passes from the top of the list to the bottom.

    The request id comes first, so that every response carries one, an early rejection too. Security and
    CORS headers are set outside of the error handling for the same reason.
    """
    settings = runtime.settings
    auth, limits = settings.auth, settings.limits
    stack = [Middleware(RequestIdMiddleware)]
    if settings.logs_access:
        stack.append(Middleware(AccessLogMiddleware))
    if tracing is not None:
        from service.observability.otel_spans import TracingMiddleware

        stack.append(Middleware(TracingMiddleware, tracing=tracing))
    stack.append(Middleware(SecurityHeadersMiddleware))
    if settings.cors_origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["retry-after", "x-request-id"],
            )
        )
    return [
        *stack,
        Middleware(UnhandledErrorMiddleware),
        *([] if keyring else [Middleware(KnownHostsMiddleware, known=known)]),
        Middleware(ApiKeyMiddleware, keyring=keyring, open_metrics=auth.open_metrics),
        Middleware(
            BodyLimitMiddleware,
            max_bytes=limits.max_body_bytes,
            timeout_s=limits.receive_timeout_s,
        ),
        Middleware(LoadSheddingMiddleware, shedding=shedding),
        Middleware(JsonByDefaultMiddleware),
        *([] if holder is None else [Middleware(ForwardingMiddleware, holder=holder)]),
    ]
