"""Server-sent events: a response that starts with its first message and ends with the client."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.http.disconnect import ClientDisconnectedError, disconnected, run_while_connected

logger = logging.getLogger(__name__)

# Longest that a client may take nothing while more waits for it: as nginx's send_timeout. Admission and the
# time limit of a request have let go of it by then, so nothing else ends a stream that nobody reads.
_STALL_S = 60.0
_LEAVE_S = 1.0  # a connection that was cut is gone at the event loop's next turn
# In a scope's extensions: what cuts its connection at once. Closing it would wait until what was written is
# read, and so for ever. A server that has none closes it as well as it can.
ABORT = "vbon.abort"


def comment(text: str) -> str:
    """A line that clients skip; it keeps proxies from closing a quiet connection."""
    return f": {text}\n\n"


def event(name: str | None, data: BaseModel | dict[str, Any] | str) -> str:
    """One event, named or not; JSON holds no raw line break, so its data is one line."""
    if isinstance(data, BaseModel):
        data = data.model_dump_json()
    elif not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return ("" if name is None else f"event: {name}\n") + f"data: {data}\n\n"


async def open_stream(
    request: Request,
    messages: AsyncGenerator[str, None],
    failed: Callable[[Exception], str],
) -> EventStream:
    """A response that has its first message already, so errors before it keep their own status.

    Args:
        failed: counts an error that comes later and gives the last message, which tells it.

    Raises:
        Whatever ``messages`` raises before it has anything to say; ClientDisconnectedError.
    """

    async def take_first() -> str:
        return await anext(messages)

    try:
        first = await run_while_connected(request, take_first())
    except BaseException:
        await messages.aclose()
        raise
    return EventStream(first, messages, failed)


class _Pieces:
    """Cuts the stream so that no piece with a comment ends in its blank line.

    `vllm bench serve` strips the white space off each piece it receives. A comment that has lost its
    blank line swallows the event behind it, and the request counts as failed. So a piece ends with the
    beginning of another comment, which the next piece goes on with.
    """

    def __init__(self) -> None:
        self._open = False

    def cut(self, message: str) -> str:
        """The piece for a message."""
        was_open, self._open = self._open, message.startswith(": ")
        if not self._open:
            return f"done\n\n{message}" if was_open else message
        return (message.removeprefix(": ") if was_open else message) + ": "


class EventStream(Response):
    """Sends messages as they come; closes their generator when they or the client end, or it stalls."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: str,
        rest: AsyncGenerator[str, None],
        failed: Callable[[Exception], str],
    ) -> None:
        # nginx would otherwise hold messages back until its buffer is full.
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._first, self._rest, self._failed = first, rest, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._failed(ClientDisconnectedError("the client disconnected"))
            elif not sending.result():
                await self._cut(scope, leaving)
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._rest.aclose()

    async def _cut(self, scope: Scope, leaving: asyncio.Task[None]) -> None:
        """End the connection of a client that takes nothing."""
        why = f"the client took nothing of its stream for {_STALL_S:g} s"
        logger.warning("%s; its connection is cut", why)
        self._failed(ClientDisconnectedError(why))
        await self._rest.aclose()
        abort = scope.get("extensions", {}).get(ABORT)
        if abort is not None:
            abort()
            await asyncio.wait({leaving}, timeout=_LEAVE_S)  # else the server logs half an answer

    async def _send(self, send: Send) -> bool:
        """Whether the client took it all."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        if not await _taken(send, start):
            return False
        pieces = _Pieces()
        async for message in self._messages():
            body = pieces.cut(message).encode()
            del message  # with all its candidates it may be large, and the next long in coming
            if not await _taken(send, _body(body, more=True)):
                return False
            del body
        return await _taken(send, _body(b"", more=False))

    async def _messages(self) -> AsyncGenerator[str, None]:
        first, self._first = self._first, ""
        yield first
        del first
        try:
            async for message in self._rest:
                yield message
                del message
        except Exception as error:  # the status is sent: an error can only be told in the stream
            yield self._failed(error)


def _body(content: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def _taken(send: Send, message: Message) -> bool:
    """Whether there was room for a message in time; none while the client does not read those before it."""
    try:
        async with asyncio.timeout(_STALL_S):
            await send(message)
    except TimeoutError:
        return False
    return True
