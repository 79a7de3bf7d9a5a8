"""A front end's own HTTP server, past Serve's proxy."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.http.open_files import raise_open_files_limit
from service.http.uvicorn_protocol import http_options
from service.runtime.runtime import Runtime
from vbon.errors import InvalidInputError

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_STOP_S = 5


class DirectApp:
    """The application, which also listens at a port of its own from its start to its end.

    Front ends of one machine share the port: the system gives each connection to one of them. Its server is
    that of ``vbon serve``, with the same limits.
    """

    def __init__(self, app: FastAPI, runtime: Runtime, port: int) -> None:
        self._app, self._runtime, self._port = app, runtime, port
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass everything on, and listen while the application runs."""
        if scope["type"] == "lifespan":
            await self._app(scope, self._around(receive), send)  # type: ignore[arg-type]
        else:
            await self._app(scope, receive, send)  # type: ignore[arg-type]

    def _around(self, receive: Receive) -> Receive:
        async def received() -> dict[str, Any]:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._listen()
            elif message["type"] == "lifespan.shutdown":
                await self._close()
            return message

        return received

    def _listen(self) -> None:
        """Begin to listen; requests that come before the models are loaded are answered with 503.

        Raises:
            InvalidInputError: the port cannot be used.
        """
        settings = self._runtime.settings
        listener = shared_socket(settings.host, self._port)
        options = http_options(
            settings.limits,
            raise_open_files_limit(settings.limits),
            self._app.state.early_refusal,
        )
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            log_config=None,
            log_level=settings.log_level,
            access_log=False,
            timeout_graceful_shutdown=math.ceil(settings.limits.drain_s) + _STOP_S,
            ws="none",
            server_header=False,
            **options,
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(
            self._server.serve(sockets=[listener]), context=Context()
        )

    async def _close(self) -> None:
        """Take no more connections, and let the requests under way end."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await self._runtime.in_flight.drain(self._runtime.settings.limits.drain_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._serving


def shared_socket(host: str, port: int) -> socket.socket:
    """A listening socket whose port other front ends of this machine may use too.

    Raises:
        InvalidInputError: the port cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the protocol's number asyncio leaves Nagle's algorithm on, which delays answers by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InvalidInputError(
            f"front ends cannot listen at {host}:{port}: {error.strerror}; set direct_port to a port that "
            "nothing else uses, not even Serve's proxy",
            field="direct_port",
        ) from error
    return listener
