"""Sheds what would be refused anyway, before it costs anything.

At ten times the load nine of ten requests are refused. To parse and validate each of them takes the
front end longer than to pass on what the engines decode, so that the admitted would wait for the refused.
"""

from __future__ import annotations

import math

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.responses import refuse
from service.runtime.runtime import Runtime

# Those whose first step is admission.
PATHS = frozenset({"/generate", "/compare", "/v1/completions", "/v1/chat/completions"})


class ShedMiddleware:
    """429 while every place is taken and the queue is full, whatever is asked: nothing fits into none.

    The body has been read by then but is not looked at: one that is wrong is told so when there is room.
    Counted under the mode in the query, or ``unknown`` where only the body names one.
    """

    def __init__(self, app: ASGIApp, *, runtime: Runtime) -> None:
        self._app, self._runtime = app, runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        admission = self._runtime.admission
        shed = (
            admission.full
            and scope["type"] == "http"
            and scope["method"] == "POST"
            and scope["path"] in PATHS
        )
        if not shed:
            await self._app(scope, receive, send)
            return
        self._count(scope)
        retry_after = str(math.ceil(admission.retry_after_s())).encode()
        message = (
            f"{admission.running} sequences run and {admission.waiting} wait: no place is free and the "
            "queue is full (limits.running_sequences, limits.waiting_sequences)"
        )
        headers = [(b"retry-after", retry_after)]
        await refuse(scope, send, 429, "overloaded", message, headers=headers, close=False)

    def _count(self, scope: Scope) -> None:
        default = self._runtime.settings.default_mode if scope["path"] == "/generate" else ""
        named = QueryParams(scope["query_string"]).get("mode", default)
        mode = named if named in self._runtime.modes else "unknown"
        self._runtime.metrics.errors.labels(mode, "overloaded").inc()
