"""Rejection of requests while the queue is full, before their bodies are parsed.

At ten times the capacity, nine of ten requests are rejected. Parsing and validating a request takes the
event loop longer than passing on decoded tokens, so the rejected requests would slow down the admitted ones.
Most are rejected by :class:`EarlyRefusal`, before a task is made for them, and the others by
:class:`LoadSheddingMiddleware`. The responses are the same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import lru_cache

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from service.admission.asks import Admits
from service.context.caller import Caller
from service.context.request_context import RequestContext, current_request
from service.http.middleware import request_id_of
from service.http.responses import refuse, whole_error
from service.http.security_headers import DEFAULT_HEADERS

# The routes whose first step is admission.
PATHS = frozenset({"/generate", "/compare", "/v1/completions", "/v1/chat/completions", "/v1/score"})

STATUS, KIND = 429, "overloaded"


class Shedding:
    """Decides which requests a full service rejects, counts them, and words the rejection.

    Args:
        default_mode: mode of a ``/generate`` request whose query names none.
        on_shed: called for each rejected request with the mode that its query names; the mode is empty
            if only the body, which is not parsed, could name one.
    """

    def __init__(
        self, admission: Admits, *, default_mode: str, on_shed: Callable[[str], None]
    ) -> None:
        self._admission, self._default_mode, self._on_shed = admission, default_mode, on_shed

    def sheds(self, method: str, path: str) -> bool:
        """True if admission would reject such a request now, whatever its body is."""
        return self._admission.full and method == "POST" and path in PATHS

    def count(self, scope: Scope) -> None:
        """Count a rejected request under its mode."""
        default = self._default_mode if scope["path"] == "/generate" else ""
        self._on_shed(_mode_of(scope["query_string"], default))

    def message(self) -> str:
        """The error's message."""
        admission = self._admission
        return (
            f"{admission.running} sequences run and {admission.waiting} wait: no place is free and the "
            "queue is full (limits.running_sequences, limits.waiting_sequences)"
        )

    def retry_after(self) -> tuple[bytes, bytes]:
        """The header that says when to try again."""
        return b"retry-after", str(math.ceil(self._admission.retry_after_s())).encode()


def _mode_of(query: bytes, default: str) -> str:
    if not query:
        return default
    return _parsed_mode(query, default) if len(query) < 64 else _parse_mode(query, default)


def _parse_mode(query: bytes, default: str) -> str:
    return QueryParams(query).get("mode", default)


_parsed_mode = lru_cache(256)(_parse_mode)  # parsing takes as long as the rest of a rejection


class LoadSheddingMiddleware:
    """Answers 429 while the engines are full and no more sequences may wait, whatever the request is.

    The body has been received by then but not parsed, so an invalid request gets 429 too; it gets its own
    error once there is room.
    """

    def __init__(self, app: ASGIApp, *, shedding: Shedding) -> None:
        self._app, self._shedding = app, shedding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject the request or pass it on."""
        shedding = self._shedding
        if scope["type"] != "http" or not shedding.sheds(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        shedding.count(scope)
        await refuse(
            scope,
            send,
            STATUS,
            KIND,
            shedding.message(),
            headers=[shedding.retry_after()],
            close=False,
        )


class EarlyRefusal:
    """Rejects what the middleware would reject, as soon as the server has read a request.

    Args:
        caller_of: the request's caller; ``None`` if it may be answered with another error than 429.
        log: writes the request's line in the access log; ``None`` if there is no such log.
    """

    def __init__(
        self,
        shedding: Shedding,
        *,
        caller_of: Callable[[Scope], Caller | None],
        log: Callable[[int, Scope, RequestContext], None] | None,
    ) -> None:
        self._shedding, self._caller_of, self._log = shedding, caller_of, log

    def concerns(self, method: str, path: str) -> bool:
        """True if :meth:`response` is worth asking for."""
        return self._shedding.sheds(method, path)

    def response(self, scope: Scope) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
        """Status, header fields and body; ``None`` if the application must be asked.

        The request's body must have been received.
        """
        shedding = self._shedding
        if not shedding.sheds(scope["method"], scope["path"]):
            return None
        caller = self._caller_of(scope)
        if caller is None:
            return None
        request_id = request_id_of(scope)
        shedding.count(scope)
        headers, content = whole_error(
            STATUS,
            KIND,
            shedding.message(),
            request_id=request_id,
            headers=[
                shedding.retry_after(),
                *DEFAULT_HEADERS.items(),
                (b"x-request-id", request_id.encode()),
            ],
        )
        if self._log is not None:
            self._note(scope, request_id, caller)
        return STATUS, headers, content

    def _note(self, scope: Scope, request_id: str, caller: Caller) -> None:
        assert self._log is not None
        context = RequestContext(request_id, status=STATUS, key=caller.name, error=KIND)
        before = current_request.set(context)
        try:
            self._log(logging.INFO, scope, context)
        finally:
            current_request.reset(before)
