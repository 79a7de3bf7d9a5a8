"""Middleware that rejects requests while the queue is full, before their bodies are parsed.

At ten times the capacity, nine of ten requests are rejected. Parsing and validating a request takes the
event loop longer than passing on decoded tokens, so without this middleware the rejected requests
would slow down the admitted ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from service.admission.admission import Admission
from service.http.responses import refuse

# The routes whose first step is admission.
PATHS = frozenset({"/generate", "/compare", "/v1/completions", "/v1/chat/completions", "/v1/score"})


class LoadSheddingMiddleware:
    """Answers 429 while the engines are full and no more sequences may wait, whatever the request is.

    The body has been received by then but not parsed, so an invalid request gets 429 too; it gets its own
    error once there is room.

    Args:
        default_mode: mode of a ``/generate`` request whose query names none.
        on_shed: called for each rejected request with the mode that its query names; the mode is empty
            if only the body, which is not parsed, could name one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        admission: Admission,
        default_mode: str,
        on_shed: Callable[[str], None],
    ) -> None:
        self._app, self._admission = app, admission
        self._default_mode, self._on_shed = default_mode, on_shed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject the request or pass it on."""
        admission = self._admission
        shed = (
            admission.full
            and scope["type"] == "http"
            and scope["method"] == "POST"
            and scope["path"] in PATHS
        )
        if not shed:
            await self._app(scope, receive, send)
            return
        self._on_shed(self._mode(scope))
        retry_after = str(math.ceil(admission.retry_after_s())).encode()
        message = (
            f"{admission.running} sequences run and {admission.waiting} wait: no place is free and the "
            "queue is full (limits.running_sequences, limits.waiting_sequences)"
        )
        headers = [(b"retry-after", retry_after)]
        await refuse(scope, send, 429, "overloaded", message, headers=headers, close=False)

    def _mode(self, scope: Scope) -> str:
        default = self._default_mode if scope["path"] == "/generate" else ""
        return QueryParams(scope["query_string"]).get("mode", default)
