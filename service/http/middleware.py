"""Middleware for request ids, content types and body limits.

It is plain ASGI, because ``BaseHTTPMiddleware`` would hide disconnects from the routes.
"""

from __future__ import annotations

import asyncio
import math
import random
import re

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.context.request_context import RequestContext, current_request
from service.http.pacing import BodyPacer
from service.http.responses import refuse
from vbon.errors import OverloadedError

_CLIENT_ID = re.compile(rb"[\w.:-]{1,128}")
_FORM = b"application/x-www-form-urlencoded"
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


def request_id_of(scope: Scope) -> str:
    """The id that the client sends, if it is short and has only harmless characters; otherwise a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    if _CLIENT_ID.fullmatch(given):
        return given.decode()
    # The id must be unique, not secret, and `random` is 40 microseconds faster than the system's source.
    return f"req-{random.getrandbits(128):032x}"


class RequestIdMiddleware:
    """Gives each request an id (:func:`request_id_of`) and returns it in ``X-Request-Id``.

    It also sets ``current_request`` for everything below it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set the id, pass the request on, and add the id to the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id

        context = RequestContext(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        before = current_request.set(context)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            current_request.reset(before)


class JsonByDefaultMiddleware:
    """Treats a body as JSON if it has no content type, or the one that ``curl -d`` sends by default.

    The API has no forms, so ``curl -d '{...}'`` can only mean JSON. Requests with an ``Origin`` header come
    from browsers and are left alone: any page may send a form to any server, but may not send JSON.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set the content type and pass the request on."""
        if (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and not any(key == b"origin" for key, _ in scope["headers"])
        ):
            headers = [(k, v) for k, v in scope["headers"] if k != b"content-type" or v != _FORM]
            if not any(key == b"content-type" for key, _ in headers):
                headers.append((b"content-type", b"application/json"))
            # Changed in place, because outer middleware reads the route from this scope.
            scope["headers"] = headers
        await self._app(scope, receive, send)


class BodyLimitMiddleware:
    """Answers 413 to a body over the limit and 408 to a body that arrives too slowly.

    Large bodies of one caller are passed on with pauses (:class:`service.http.pacing.BodyPacer`).
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes, self._timeout_s = max_bytes, timeout_s
        self._pacer = BodyPacer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body within the limits and pass it on."""
        # Whatever its method, a request has a body if and only if it has one of these fields.
        if scope["type"] != "http" or not _FRAMING & {name for name, _ in scope["headers"]}:
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await self._refuse(scope, send)
            return
        # Reading the whole body here adds no delay, because a route only runs once its body has been read.
        try:
            async with asyncio.timeout(self._timeout_s):
                content = await self._read(receive)
        except TimeoutError:
            message = (
                f"timed out after {self._timeout_s:g} s reading the request body "
                "(limits.receive_timeout_s)"
            )
            await refuse(scope, send, 408, "request_timeout", message)
            return
        except ClientDisconnect:
            return
        if content is None:
            await self._refuse(scope, send)
            return
        try:
            await self._pacer.turn(content)
        except OverloadedError as error:
            retry_after = str(math.ceil(error.retry_after_s)).encode()
            headers = [(b"retry-after", retry_after)]
            await refuse(scope, send, 429, "overloaded", str(error), headers=headers, close=False)
            return
        body: Message | None = {"type": "http.request", "body": content, "more_body": False}

        async def replay() -> Message:
            nonlocal body
            if body is not None:
                message, body = body, None
                return message
            return await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, or ``None`` if it is over the limit."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._max_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        message = (
            f"the request body is over the limit of {self._max_bytes} bytes (limits.max_body_bytes)"
        )
        await refuse(scope, send, 413, "body_too_large", message)
