"""Forwards requests to the holder of their state."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from service.auto.live import LiveAuto
from service.context.caller import current_caller
from service.context.request_context import record_error
from service.held.requests import Answered, Asked
from service.held.routes import is_held
from service.http.disconnect import ClientDisconnectedError, disconnected


class Holder(Protocol):
    """The holder, as another front end reaches it."""

    async def start(self, auto: LiveAuto) -> None:
        """Connect, and follow the holder's table of mode ``auto`` from then on."""

    async def stop(self) -> None:
        """End the connection."""

    async def ask(self, asked: Asked) -> Answered:
        """Let the holder answer a request, whose client has left if this is cancelled.

        Raises:
            NotReadyError: the holder cannot be reached.
        """


class ForwardingMiddleware:
    """Passes requests for held state on to the holder, and everything else to the application.

    It is within authentication and the limits of bodies, so that the holder gets only requests that this
    front end would serve.
    """

    def __init__(self, app: ASGIApp, *, holder: Holder) -> None:
        self._app, self._holder = app, holder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request or pass it on."""
        if scope["type"] != "http" or not is_held(scope):
            await self._app(scope, receive, send)
            return
        asked = Asked(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"],
            headers=list(scope["headers"]),
            body=await _body(receive),
            scheme=scope.get("scheme", "http"),
            server=scope.get("server"),
            request_id=scope.get("state", {}).get("request_id", ""),
            caller=current_caller.get(),
        )
        answered = await _while_connected(receive, asyncio.ensure_future(self._holder.ask(asked)))
        if answered.error:
            record_error(answered.error)
        await send(
            {
                "type": "http.response.start",
                "status": answered.status,
                "headers": list(answered.headers),
            }
        )
        await send({"type": "http.response.body", "body": answered.body})


async def _body(receive: Receive) -> bytes:
    """The body of a request, whose length something above has limited.

    Raises:
        ClientDisconnectedError: the client has gone.
    """
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError("the client disconnected")
        content += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(content)


async def _while_connected(receive: Receive, asking: asyncio.Future[Answered]) -> Answered:
    leaving = asyncio.ensure_future(disconnected(receive))
    try:
        either: set[asyncio.Future[Any]] = {asking, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            raise ClientDisconnectedError("the client disconnected")
        return asking.result()
    finally:
        for task in (asking, leaving):
            task.cancel()
        await asyncio.gather(asking, leaving, return_exceptions=True)
