"""uvicorn's httptools protocol with limits, strict framing, and patience with clients that still send.

Only ``uvicorn_protocol.py`` imports this module, which names httptools in its error if it is missing.
"""

from __future__ import annotations

import asyncio
import logging

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.http.closing import HalfClosedWatch, Lingering
from service.http.early import HOLD_S, EarlyAnswer, is_plain, response_bytes
from service.http.request_head import head_fault, without_upgrade
from service.http.responses import refuse, whole_error
from service.http.sse import ABORT
from service.observability.throttled_log import ThrottledLog
from service.settings import LimitSettings

CHUNKED = b"transfer-encoding: chunked\r\n"  # as uvicorn writes it

logger = logging.getLogger(__name__)
_throttled = ThrottledLog(logger)


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 to a head over the limits, 408 to one that takes too long, and 400 to a wrong one.

    A connection whose client reads nothing of its response for ``unread_s`` seconds is aborted. Requests to
    change the protocol are served as if they had not asked for it. Clients that still send when their
    response is complete can read it, and so can those that have closed their sending direction.

    Requests that ``early`` is concerned with are held until their bodies are complete. It then answers them,
    or they go to the application like all others.
    """

    limits: LimitSettings
    unread_s: float
    # The system gives each connection the lowest free number, so a high one means that few are left.
    most_descriptor: int | None = None
    early: EarlyAnswer | None = None

    _in_head = True
    _head_bytes = 0
    # Bytes received since the head or the last piece of the body: chunk sizes, and trailers.
    _bytes_between = 0
    _head_timer: asyncio.TimerHandle | None = None
    # Set when no further input counts: it was invalid, or the client has closed its sending direction.
    _hung_up = False
    _unread_watch: _UnreadWatch
    _lingering: Lingering | None = None
    _half_closed: HalfClosedWatch | None = None
    # The body, so far, of a request that the application does not know of yet.
    _held: bytearray | None = None
    _hold_timer: asyncio.TimerHandle | None = None
    # The cycle that has written last, which is in the middle of its response unless that is complete.
    _writer: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._unread_watch = _UnreadWatch(transport, self.loop, self.unread_s)
        if self._has_no_room():
            _throttled.warn("refused connections, because the limit of open files is near")
            self._end(503, "overloaded", "too many connections are open; try again later")
            return
        self._start_head_timer()

    def _has_no_room(self) -> bool:
        held = self.transport.get_extra_info("socket")
        return (
            self.most_descriptor is not None
            and held is not None
            and held.fileno() > self.most_descriptor
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all timers."""
        self._stop_head_timer()
        self._stop_hold_timer()
        self._unread_watch.stop()
        for watch in (self._lingering, self._half_closed):
            if watch is not None:
                watch.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head, and start its time limit with its first byte."""
        if self._lingering is not None:
            self._lingering.heard()
            return
        if self._hung_up:
            return
        if self._in_head:
            self._head_bytes += len(data)
            # While a response is being sent, the next head may take its time; the keep-alive limit
            # starts after the response.
            if not self._response_is_owed:
                self._start_head_timer()
        else:
            self._bytes_between += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        most = self.limits.max_header_bytes
        if (self._in_head and self._head_bytes > most) or self._bytes_between > most:
            self._end(431, "headers_too_large", _too_large(self.limits))
        if self._held is not None and self._hold_timer is None:
            self._hold_timer = self.loop.call_later(HOLD_S, self._pass_on)

    def _parse(self, data: bytes) -> None:
        """Hand bytes to the parser; like uvicorn's ``data_received``, but never changes the protocol."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # The parser takes all that follows for another protocol. A new one gets the same head without
                # the wish for an upgrade, and so reads the body as a body.
                if self.parser.get_method() == b"CONNECT":
                    self._end(400, "bad_request", "CONNECT is not supported; this is not a proxy")
                    return
                head = without_upgrade(
                    self.parser.get_method(),
                    self.url,
                    self.parser.get_http_version(),
                    self.headers,
                )
                data = head + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except httptools.HttpParserError:
                # Anybody can send any number of these, so they are not logged one by one.
                _throttled.warn("received bytes that are not HTTP, and answered 400")
                self._end(400, "bad_request", "Invalid HTTP request received.")
                return

    def on_message_begin(self) -> None:
        """Let the application abort the connection."""
        super().on_message_begin()
        # `transport.close` waits until the client has read everything, which may be never.
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head. Trailers, which follow a body in chunks, are not header fields."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, or answer it with an error if its head is wrong."""
        if self.parser.should_upgrade():
            return  # :meth:`_parse` gives the head to another parser
        self._in_head, self._bytes_between = False, 0
        self._stop_head_timer()
        if self.parser.get_http_version() == "1.0":  # it has no interim responses to expect
            self.expect_100_continue = False
        fault = self._fault_of_head()
        if fault is None and self._is_for_early():
            self._held = bytearray()
        else:
            self._start(fault)

    def _start(self, fault: tuple[int, str, str] | None = None) -> None:
        """Give the request to the application, or to one that answers with this fault."""
        self._unset_keepalive_if_required()  # it runs if the request before this one was answered early
        app = self.app
        if fault is not None:
            self.app = _refusing(*fault)
        try:
            super().on_headers_complete()
        finally:
            self.app = app
        self.cycle.transport = _ResponseTransport(self, self.cycle)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._bytes_between = 0
        if self._held is not None:
            self._held += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Start to count the bytes of the next head."""
        if self.parser.should_upgrade():
            return
        self._in_head, self._head_bytes, self._bytes_between = True, 0, 0
        if self._held is not None:
            if self._answer_early():
                return
            self._pass_on()
        super().on_message_complete()

    def _is_for_early(self) -> bool:
        """True if the request is held, because it may be answered without the application."""
        if self.early is None or self._response_is_owed or self.flow.write_paused:
            return False
        parsed = httptools.parse_url(self.url)
        scope = self.scope
        scope["method"], scope["path"] = self.parser.get_method().decode(), parsed.path.decode()
        scope["query_string"] = parsed.query or b""
        return self.early.concerns(scope["method"], scope["path"]) and is_plain(
            self.headers, self.limits.max_body_bytes
        )

    def _answer_early(self) -> bool:
        """Answer the held request, whose body is complete; false if the application must."""
        found = None if self.early is None else self.early.response(self.scope)  # type: ignore[arg-type]
        if found is None:
            return False
        self._held = None
        self._stop_hold_timer()
        status, headers, body = found
        stays = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        fields = [*self.server_state.default_headers, *headers]
        if not stays:
            fields.append((b"connection", b"close"))
        self.transport.write(response_bytes(status, fields, body))
        if not stays:
            self.transport.close()
        self.on_response_complete()
        return True

    def _pass_on(self) -> None:
        """Give the held request, and the part of its body that has come, to the application."""
        held, self._held = self._held, None
        self._stop_hold_timer()
        if held is None or self.is_ending:
            return
        self._start()
        if held:
            super().on_body(bytes(held))

    def _stop_hold_timer(self) -> None:
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None

    def _should_upgrade(self) -> bool:
        """False: the service has no websockets."""
        return False

    def _fault_of_head(self) -> tuple[int, str, str] | None:
        """Status, type and message of the error for the head just read, or ``None``."""
        # 4 bytes a field: the colon, the space and the line break.
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        limits = self.limits
        if size > limits.max_header_bytes or len(self.headers) > limits.max_header_fields:
            return 431, "headers_too_large", _too_large(limits)
        fault = head_fault(self.url, self.headers, self.parser.get_http_version())
        return None if fault is None else (400, "bad_request", fault)

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

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a half-closed connection open while a complete request waits for its response."""
        if self._lingering is not None or not self._response_is_owed or self.cycle.more_body:
            return False
        # HTTP/1.0 has no interim responses, with which to find out whether the client has gone.
        if self.cycle.scope["http_version"] == "1.0":
            return False
        self._hung_up = True
        self.cycle.keep_alive = False
        self._half_closed = HalfClosedWatch(self.transport, self.loop, self._is_between_responses)
        return True

    def _is_between_responses(self) -> bool:
        return self._writer is None or self._writer.response_complete

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
        if self._lingering is None:  # otherwise no further request is served
            super().on_response_complete()

    def write_response(self, cycle: RequestResponseCycle, data: bytes) -> None:
        """Write a part of a cycle's response."""
        self._writer = cycle
        self.transport.write(data)

    def close_after_response(self) -> None:
        """Close the connection once the client has stopped sending, so that it can read its response."""
        if self._lingering is not None or self.transport.is_closing():
            return
        may_be_sending = self.cycle.more_body or self.flow.read_paused or self._hung_up
        if self._half_closed is not None or not may_be_sending:
            self.transport.close()
            return
        self._linger()

    @property
    def is_ending(self) -> bool:
        """True if nothing more is sent over this connection."""
        return self._lingering is not None or self.transport.is_closing()

    def shutdown(self) -> None:
        """End the connection, at once unless a response is owed: the server is stopping."""
        self._pass_on()
        if self._lingering is not None:
            self.transport.close()
        else:
            super().shutdown()

    def _linger(self) -> None:
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.flow.resume_reading()
        self._lingering = Lingering(self.transport, self.loop, self.limits.receive_timeout_s)

    def _end(self, status: int, kind: str, message: str) -> None:
        """Send an error for input that never became a request, and close the connection.

        If responses to earlier requests are still owed, send those first and then close without the error.
        """
        if self.is_ending:
            return
        if self._response_is_owed and not self._in_body_of_only_request:
            self._hung_up = True
            self.cycle.keep_alive = False
            return
        self.transport.write(_error_response(status, kind, message))
        if self._response_is_owed:  # to the request that has just got its response here
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._linger()
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


def _refusing(status: int, kind: str, message: str) -> ASGIApp:
    """An ASGI application that answers a request whose head is wrong."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        await refuse(scope, send, status, kind, message)

    return app


class _ResponseTransport:
    """The transport that a response is written to, as far as uvicorn's cycle uses one.

    uvicorn sends chunks even to clients of HTTP/1.0, which has none. So they are taken out of such responses,
    which end with their connection. Each call of ``write`` has the head, or one chunk and perhaps the last.
    """

    def __init__(self, protocol: BoundedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol, self._cycle = protocol, cycle
        self._knows_chunks = cycle.scope["http_version"] != "1.0"
        self._in_head = True

    def write(self, data: bytes) -> None:
        if self._cycle.chunked_encoding and not self._knows_chunks:
            data = data.replace(CHUNKED, b"") if self._in_head else _content_of(data)
        self._in_head = False
        if data:
            self._protocol.write_response(self._cycle, data)

    def is_closing(self) -> bool:
        return self._protocol.is_ending

    def close(self) -> None:
        self._protocol.close_after_response()


def _content_of(chunks: bytes) -> bytes:
    """The content of one chunk, after which the last, empty one may follow; empty if there is only that."""
    size, _, rest = chunks.partition(b"\r\n")
    return rest[: int(size, 16)] if size else b""


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
        _throttled.warn(
            f"closed the connection of a client that read nothing of its response for {self._limit_s:g} s"
        )
        self._transport.abort()


def _too_large(limits: LimitSettings) -> str:
    return (
        f"the request head is over {limits.max_header_bytes} bytes (limits.max_header_bytes) or "
        f"{limits.max_header_fields} fields (limits.max_header_fields)"
    )


def _error_response(status: int, kind: str, message: str) -> bytes:
    """A whole HTTP/1.1 response with a JSON error, for input that has no request to answer."""
    close = (b"connection", b"close")
    return response_bytes(status, *whole_error(status, kind, message, headers=[close]))
