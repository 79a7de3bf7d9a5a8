"""Access log: one log record for each request, written when it ends."""

from __future__ import annotations

import logging
from http import HTTPMethod
from time import perf_counter

from starlette.types import ASGIApp, Receive, Scope, Send

from service.context.request_context import PROBES, RequestContext, current_request
from service.observability.logs import with_fields

logger = logging.getLogger(__name__)

_METHODS = frozenset(HTTPMethod)


class AccessLogMiddleware:
    """Logs method, route, status, duration, mode, key and tokens; probes only at level debug.

    The log has the route, not the path, and only methods that HTTP defines. So nothing that a client makes
    up reaches the log, except a request id, whose characters ``RequestIdMiddleware`` has checked.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and log it when it ends."""
        request = current_request.get()
        level = logging.DEBUG if scope.get("path") in PROBES else logging.INFO
        if scope["type"] != "http" or request is None or not logger.isEnabledFor(level):
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            log_request(level, scope, request)


def route_of(scope: Scope) -> str | None:
    """The path template of the route that matched, such as ``/v1/models/{model}``, or ``None``."""
    route = scope.get("route")
    return None if route is None else str(route.path)


def method_of(scope: Scope) -> str | None:
    """The request's method, or ``None`` if HTTP does not define it."""
    return scope["method"] if scope["method"] in _METHODS else None


def log_request(level: int, scope: Scope, request: RequestContext) -> None:
    """Log a request that has ended, and is the current one."""
    prompts = request.prompts
    duration_ms = round((perf_counter() - request.begun_s) * 1e3, 3)
    fields = with_fields(
        method=method_of(scope),
        path=route_of(scope),
        status=request.status,
        duration_ms=duration_ms,
        mode=",".join(request.modes) or None,
        key=request.key or None,
        generated_tokens=sum(prompt.generated_tokens for prompt in prompts),
        returned_tokens=sum(prompt.returned_tokens for prompt in prompts),
        error=request.error or None,
    )
    logger.log(level, "request ended", extra=fields)
