"""Cancels a request's work when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client closed the connection before its response was complete."""


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, and cancel it when the client disconnects, which aborts its sequences too.

    Raises:
        ClientDisconnectedError: the client has disconnected, so nobody would read the result.
    """
    task = asyncio.current_task()
    assert task is not None  # a coroutine always runs in a task
    gone = False

    async def watch() -> None:
        nonlocal gone
        await disconnected(request.receive)
        gone = True
        task.cancel()

    # `work` runs in the current task: starting a second task for it would cost every request time.
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
    """Return once the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
