"""HTTP/1.1 heads within bounds: bytes, fields, and the time they may take.

Uvicorn's httptools protocol has no limit on any of them, and its h11 one on bytes alone.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Scope, Send

from service.http.responses import refuse
from service.http.sse import ABORT
from service.settings import LimitSettings

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)

# Longest that a client may take nothing of what is written for it. Later than the limit of a stream, which
# can say more of what it was.
UNREAD_S = 90.0


def http_options(limits: LimitSettings) -> dict[str, Any]:
    """Arguments of ``uvicorn.Config``; without httptools, h11's own limit on bytes."""
    options: dict[str, Any] = {"timeout_keep_alive": limits.keep_alive_s}
    if importlib.util.find_spec("httptools") is None:
        return options | {"http": "h11", "h11_max_incomplete_event_size": limits.max_header_bytes}
    return options | {"http": bounded_protocol(limits)}


def bounded_protocol(limits: LimitSettings) -> type[HttpToolsProtocol]:
    """Uvicorn's protocol with these limits: 431 past them, 408 for a head that does not end.

    The connection of a client that takes nothing of its answer is cut.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    most_bytes, most_fields = limits.max_header_bytes, limits.max_header_fields
    too_large = (
        f"the head of the request is over {most_bytes} bytes (limits.max_header_bytes) or "
        f"{most_fields} fields (limits.max_header_fields)"
    )

    async def refuse_head(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        await refuse(scope, send, 431, "headers_too_large", too_large)

    class BoundedProtocol(HttpToolsProtocol):
        _in_head = True
        _arrived = 0
        _head_timer: asyncio.TimerHandle | None = None
        _hung_up = False
        _unread = 0
        _unread_timer: asyncio.TimerHandle | None = None

        @property
        def _answering(self) -> bool:
            """Whether an answer is owed; of several requests, the cycle is the last one's."""
            return self.cycle is not None and not self.cycle.response_complete

        @property
        def _in_first_body(self) -> bool:
            """Whether the body is read of the only request an answer is owed to, and none has begun."""
            cycle = self.cycle
            return cycle.more_body and not cycle.response_started and not self.pipeline

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            self._stop_unread_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._hung_up:
                return
            if self._in_head:
                self._arrived += len(data)
                # During an answer the next head may wait too; the time to keep alive follows it.
                if not self._answering:
                    self._start_timer()
            super().data_received(data)
            if self._in_head and self._arrived > most_bytes:
                self._end(431, "headers_too_large", too_large)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            # `close` waits until all is read that was written: for ever, for a client that reads nothing.
            self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._stop_timer()
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            app = self.app
            if size > most_bytes or len(self.headers) > most_fields:
                self.app = refuse_head
            super().on_headers_complete()
            self.app = app

        def on_message_complete(self) -> None:
            self._in_head, self._arrived = True, 0
            super().on_message_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_reader()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._watch_reader()

        def on_response_complete(self) -> None:
            self._watch_reader()
            super().on_response_complete()

        def _watch_reader(self) -> None:
            """From now on; something has just been taken or written."""
            self._stop_unread_timer()
            self._unread = self.transport.get_write_buffer_size()
            if self._unread:
                self._unread_timer = self.loop.call_later(UNREAD_S, self._look_at_reader)

        def _look_at_reader(self) -> None:
            if self.transport.get_write_buffer_size() < self._unread:
                self._watch_reader()
                return
            logger.warning(
                "a client took nothing of its answer for %g s; its connection is cut, with %d bytes unread",
                UNREAD_S,
                self._unread,
            )
            self.transport.abort()

        def _stop_unread_timer(self) -> None:
            if self._unread_timer is not None:
                self._unread_timer.cancel()
                self._unread_timer = None

        def send_400_response(self, msg: str) -> None:
            self._end(400, "bad_request", msg)

        def _start_timer(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(limits.receive_timeout_s, self._late)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _late(self) -> None:
            self._end(408, "request_timeout", "the head of the request did not come in time")

        def _end(self, status: int, kind: str, message: str) -> None:
            """Answer what never became a request, or close after the answers that are owed first."""
            if self.transport.is_closing():
                return
            if self._answering and not self._in_first_body:
                self._hung_up, self.cycle.keep_alive = True, False
                return
            error = {
                "message": message,
                "type": kind,
                "param": None,
                "code": status,
                "request_id": "",
            }
            content = json.dumps({"error": error}).encode()
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + content)
            self.transport.close()
            self._watch_reader()

    return BoundedProtocol
