"""Pure ASGI middleware (BaseHTTPMiddleware would hide client disconnects)."""

from __future__ import annotations

import random
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.refusal import refuse

_CLIENT_ID = re.compile(rb"^[\w.:-]{1,128}$")
_FORM = b"application/x-www-form-urlencoded"


class RequestIdMiddleware:
    """Gives each request an id, the client's ``X-Request-Id`` if it is sane, and echoes it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        # Unique, not secret: a random id of the system's costs 40 microseconds.
        own = f"req-{random.getrandbits(128):032x}"
        request_id = given.decode() if _CLIENT_ID.match(given) else own
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        await self._app(scope, receive, send_with_id)


class JsonByDefaultMiddleware:
    """Takes a body sent without a content type, or with curl's default for ``-d``, for JSON.

    The API has no forms, so a bare ``curl -d '{...}'`` can only mean JSON.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = [(k, v) for k, v in scope["headers"] if k != b"content-type" or v != _FORM]
            if not any(key == b"content-type" for key, _ in headers):
                headers.append((b"content-type", b"application/json"))
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


class BodyLimitMiddleware:
    """Refuses bodies over a limit with 413, by Content-Length or while they stream in."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] not in {"POST", "PUT", "PATCH"}:
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await self._refuse(scope, send)
            return
        # The body is read whole before the route runs anyway; reading it here bounds it.
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._max_bytes:
                await self._refuse(scope, send)
                return
            if not message.get("more_body", False):
                break
        body: Message | None = {
            "type": "http.request",
            "body": b"".join(chunks),
            "more_body": False,
        }

        async def replay() -> Message:
            nonlocal body
            if body is not None:
                message, body = body, None
                return message
            return await receive()

        await self._app(scope, replay, send)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        message = f"the body is over the limit of {self._max_bytes} bytes (limits.max_body_bytes)"
        await refuse(scope, send, 413, "body_too_large", message)
