"""Work stops when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client closed the connection before its answer was ready."""


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, cancelling it (and with it the sequences it decodes) on disconnect.

    Raises:
        ClientDisconnectedError: the client has gone; nobody will read an answer.
    """
    task = asyncio.current_task()
    assert task is not None  # a coroutine always runs in one
    gone = False

    async def watch() -> None:
        nonlocal gone
        await disconnected(request.receive)
        gone = True
        task.cancel()

    # Only the watcher is a task of its own: every request pays for what is started here.
    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientDisconnectedError("the client disconnected") from None
        raise
    finally:
        watching.cancel()


async def disconnected(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
