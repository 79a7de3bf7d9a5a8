"""Routes whose effect or memory is in one process, on a server that has several."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.responses import refuse

STATUS, KIND = 501, "needs_one_process"
# The routes, and what to do without them.
ROUTES: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (method, re.compile(path), remedy)
    for method, path, remedy in (
        ("POST", r"/admin/reload", "restart the server"),
        ("POST", r"/loadtests", "run `vbon loadtest run`"),
        ("DELETE", r"/loadtests/[^/]+", "stop `vbon loadtest run` with Ctrl-C"),
        ("POST", r"/loadtests/[^/]+/report-link", "get /loadtests/ID/report with a key"),
        ("GET", r"/page/reports/[^/]+", "get /loadtests/ID/report with a key"),
        ("POST", r"/preferences/pairs", "collect verdicts on a server of one process"),
        ("POST", r"/preferences", "collect verdicts on a server of one process"),
        ("PUT", r"/auto/table", "start the server with --auto.table FILE"),
        ("DELETE", r"/auto/table", "start the server without the table"),
        ("POST", r"/tune/runs/[^/]+/apply", "start the server with --auto.table FILE"),
    )
)


class OneProcessMiddleware:
    """Answers 501 to requests that a server of several processes cannot serve, and says what to do."""

    def __init__(self, app: ASGIApp, *, workers: int) -> None:
        self._app, self._workers = app, workers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        remedy = _remedy(scope) if scope["type"] == "http" else None
        if remedy is None:
            await self._app(scope, receive, send)
            return
        message = (
            f"this server has {self._workers} processes (workers), and only one of them would know of this; "
            f"{remedy}, or start the server with --workers 1"
        )
        await refuse(scope, send, STATUS, KIND, message)


def _remedy(scope: Scope) -> str | None:
    for method, path, remedy in ROUTES:
        if scope["method"] == method and path.fullmatch(scope["path"]):
            return remedy
    return None
