"""The holder's side: its application as the wire serves it to the other front ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware

from service.auto.live import LiveAuto
from service.auto.table_in_use import TableState
from service.context.caller import current_caller
from service.context.request_context import RequestContext, current_request
from service.held.requests import Answered, Asked
from service.held.routes import is_held
from service.wire.errors import WireError
from service.wire.interface import interface_of


class HeldRequests:
    """Serves requests that other front ends have received, and tells them of the table of mode ``auto``."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._serving: set[asyncio.Task[None]] = set()
        # The other front end has done what the middleware does. These two are FastAPI's own.
        inner = AsyncExitStackMiddleware(app.router)
        handlers = {k: v for k, v in app.exception_handlers.items() if k not in (500, Exception)}
        self._inner = ExceptionMiddleware(inner, handlers=handlers)

    async def watch(self) -> AsyncGenerator[TableState, None]:
        """Yield the table of mode ``auto``, at once and whenever there is another one."""
        auto: LiveAuto = self._app.state.auto
        while True:
            changed = auto.table.changed
            yield auto.table.state
            await changed.wait()

    async def ask(self, asked: Asked) -> Answered:
        """The answer to a request of a held route.

        Cancelling it disconnects the client: the route goes on unless it looks for that, as it does where no
        request is forwarded. Otherwise half of a change could be made, such as a verdict that is stored while
        its pair still waits for one.

        Raises:
            WireError: it is none.
        """
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": asked.method,
            "scheme": asked.scheme,
            "path": asked.path,
            "raw_path": asked.path.encode(),
            "query_string": asked.query,
            "root_path": "",
            "headers": asked.headers,
            "client": None,
            "server": asked.server,
            "state": {"request_id": asked.request_id},
            "app": self._app,
        }
        if not is_held(scope):
            raise WireError(f"{asked.method:.20} {asked.path:.60} is not forwarded")
        context = RequestContext(asked.request_id, key=asked.caller.name)
        current_caller.set(asked.caller)
        current_request.set(context)
        body: list[bytes] = [asked.body]
        answer: dict[str, Any] = {"body": bytearray()}
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer["status"], answer["headers"] = message["status"], message["headers"]
            else:
                answer["body"] += message.get("body", b"")

        serving = asyncio.create_task(self._inner(scope, receive, send))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        try:
            await asyncio.shield(serving)
        finally:
            gone.set()
        return Answered(
            answer["status"],
            [(bytes(name), bytes(value)) for name, value in answer["headers"]],
            bytes(answer["body"]),
            context.error,
        )


HELD_REQUESTS = interface_of(HeldRequests, "watch", "ask", lasting=("watch",))
