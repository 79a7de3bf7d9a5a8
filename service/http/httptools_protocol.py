"""uvicorn's httptools protocol with limits on a request's head and on clients that do not read.

Only ``uvicorn_protocol.py`` imports this module, and only if httptools is installed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.responses import error_body, refuse
from service.http.sse import ABORT
from service.settings import LimitSettings

logger = logging.getLogger(__name__)


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 to a head over the limits and 408 to one that takes too long.

    A connection whose client reads nothing of its response for ``unread_s`` seconds is aborted.
    """

    limits: LimitSettings
    unread_s: float

    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    # Set when an invalid request follows others: their responses are sent, and all later input is ignored.
    _hung_up = False
    _unread_watch: _UnreadWatch

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._unread_watch = _UnreadWatch(transport, self.loop, self.unread_s)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all timers."""
        self._stop_head_timer()
        self._unread_watch.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head, and start its time limit with its first byte."""
        if self._hung_up:
            return
        if self._in_head:
            self._head_bytes += len(data)
            # While a response is being sent, the next head may take its time; the keep-alive limit
            # starts after the response.
            if not self._response_is_owed:
                self._start_head_timer()
        super().data_received(data)
        if self._in_head and self._head_bytes > self.limits.max_header_bytes:
            self._end(431, "headers_too_large", _too_large(self.limits))

    def on_message_begin(self) -> None:
        """Let the application abort the connection."""
        super().on_message_begin()
        # `transport.close` waits until the client has read everything, which may be never.
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """Answer the request with 431 if its head is too large."""
        self._in_head = False
        self._stop_head_timer()
        app = self.app
        if self._head_is_too_large():
            self.app = self._refuse_head
        super().on_headers_complete()
        self.app = app

    def on_message_complete(self) -> None:
        """Start to count the bytes of the next head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def _head_is_too_large(self) -> bool:
        # 4 bytes a field: the colon, the space and the line break.
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return (
            size > self.limits.max_header_bytes or len(self.headers) > self.limits.max_header_fields
        )

    async def _refuse_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI application that answers a request whose head is too large."""
        del receive
        await refuse(scope, send, 431, "headers_too_large", _too_large(self.limits))

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            limit_s = self.limits.receive_timeout_s
            self._head_timer = self.loop.call_later(limit_s, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        limit_s = self.limits.receive_timeout_s
        self._end(
            408,
            "request_timeout",
            f"timed out after {limit_s:g} s reading the request headers (limits.receive_timeout_s)",
        )

    def pause_writing(self) -> None:
        """Watch for a client that does not read: the write buffer is full."""
        super().pause_writing()
        self._unread_watch.restart()

    def resume_writing(self) -> None:
        """Watch anew: the client has read something."""
        super().resume_writing()
        self._unread_watch.restart()

    def on_response_complete(self) -> None:
        """Watch for a client that leaves the end of its response unread."""
        self._unread_watch.restart()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Send uvicorn's own errors in the shape of ours."""
        self._end(400, "bad_request", msg)

    def _end(self, status: int, kind: str, message: str) -> None:
        """Send an error for input that never became a request, and close the connection.

        If responses to earlier requests are still owed, send those first and then close without the error.
        """
        if self.transport.is_closing():
            return
        if self._response_is_owed and not self._in_body_of_only_request:
            self._hung_up = True
            self.cycle.keep_alive = False
            return
        self.transport.write(_error_response(status, kind, message))
        self.transport.close()
        self._unread_watch.restart()

    @property
    def _response_is_owed(self) -> bool:
        """True if a response is incomplete. ``cycle`` belongs to the newest request received."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _in_body_of_only_request(self) -> bool:
        """True if one request is open, its body is incomplete and its response has not started."""
        cycle = self.cycle
        return cycle.more_body and not cycle.response_started and not self.pipeline


class _UnreadWatch:
    """Aborts a connection when its write buffer does not shrink for ``limit_s`` seconds."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, limit_s: float
    ) -> None:
        self._transport, self._loop, self._limit_s = transport, loop, limit_s
        self._unread = 0
        self._timer: asyncio.TimerHandle | None = None

    def restart(self) -> None:
        """Start to wait anew if anything is unread; called when bytes were just written or read."""
        self.stop()
        self._unread = self._transport.get_write_buffer_size()
        if self._unread:
            self._timer = self._loop.call_later(self._limit_s, self._check)

    def stop(self) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        if self._transport.get_write_buffer_size() < self._unread:
            self.restart()
            return
        logger.warning(
            "closed the connection of a client that read nothing of its response for %g s; "
            "%d bytes were unread",
            self._limit_s,
            self._unread,
        )
        self._transport.abort()


def _too_large(limits: LimitSettings) -> str:
    return (
        f"the request head is over {limits.max_header_bytes} bytes (limits.max_header_bytes) or "
        f"{limits.max_header_fields} fields (limits.max_header_fields)"
    )


def _error_response(status: int, kind: str, message: str) -> bytes:
    """A whole HTTP/1.1 response with a JSON error, for input that has no request to answer."""
    content = json.dumps(error_body(status, kind, message)).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + content
