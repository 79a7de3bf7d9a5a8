"""Server-sent events: a streaming response whose status is decided by its first message.

Starlette's ``StreamingResponse`` sends status 200 before the first message exists, so an error before it
could not have a status of its own.
"""

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
from service.observability.throttled_log import ThrottledLog

_throttled = ThrottledLog(logging.getLogger(__name__))

# The longest time that a client may read nothing while more is to be sent; nginx's send_timeout is the
# same. By then the request has left admission and its time limit no longer applies, so nothing else would
# end a stream that nobody reads. See UNREAD_S in uvicorn_protocol.py for the limit on other responses.
_STALL_S = 60.0
_LEAVE_S = 1.0  # an aborted connection is gone at the event loop's next turn
# Key in a scope's extensions of a function that aborts the connection at once. Closing the connection would
# wait until the client has read everything, which may be never. Servers without the extension close it.
ABORT = "vbon.abort"


def comment(text: str) -> str:
    """A line that clients ignore; it keeps proxies from closing an idle connection."""
    return f": {text}\n\n"


def event(name: str | None, data: BaseModel | dict[str, Any] | str) -> str:
    """One event, with a name or without. JSON contains no raw line break, so the data is one line."""
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
    """Wait for the first message and return a response that begins with it.

    An error before the first message is raised here, so it gets a status of its own.

    Args:
        failed: called with an error that comes after the first message. It counts the error and returns
            the stream's last message, which reports it to the client.

    Raises:
        ClientDisconnectedError: the client disconnected before the first message.
        Exception: anything that ``messages`` raises before its first message.
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
    """Splits the stream into pieces so that no piece ends with the blank line after a comment.

    ``vllm bench serve`` strips the white space from each piece that it receives. A comment without its
    blank line would merge with the next event, and the request would count as failed. So a piece with a
    comment ends with the start of another comment, which the next piece completes.
    """

    def __init__(self) -> None:
        self._open = False

    def cut(self, message: str) -> str:
        """The piece that carries a message."""
        was_open, self._open = self._open, message.startswith(": ")
        if not self._open:
            return f"done\n\n{message}" if was_open else message
        return (message.removeprefix(": ") if was_open else message) + ": "


class EventStream(Response):
    """Sends messages as they come.

    Closes the generator of messages when it is exhausted, when the client disconnects, or when the client
    reads nothing for ``_STALL_S`` seconds.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: str,
        rest: AsyncGenerator[str, None],
        failed: Callable[[Exception], str],
    ) -> None:
        # x-accel-buffering: nginx would otherwise hold messages back until its buffer is full.
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._first, self._rest, self._failed = first, rest, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
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
        """Abort the connection of a client that reads nothing."""
        why = f"the client read nothing of its stream for {_STALL_S:g} s"
        _throttled.warn(f"{why}; its connection is closed")
        self._failed(ClientDisconnectedError(why))
        await self._rest.aclose()
        abort = scope.get("extensions", {}).get(ABORT)
        if abort is not None:
            abort()
            # Without this wait the server would log an incomplete response.
            await asyncio.wait({leaving}, timeout=_LEAVE_S)

    async def _send(self, send: Send) -> bool:
        """Send everything; ``False`` if the client stopped reading."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        if not await _send_in_time(send, start):
            return False
        pieces = _Pieces()
        async for message in self._messages():
            body = pieces.cut(message).encode()
            del message  # may hold all candidates, and the next message may be long in coming
            if not await _send_in_time(send, _body(body, more=True)):
                return False
            del body
        return await _send_in_time(send, _body(b"", more=False))

    async def _messages(self) -> AsyncGenerator[str, None]:
        first, self._first = self._first, ""
        yield first
        del first
        try:
            async for message in self._rest:
                yield message
                del message
        except Exception as error:
            # The status has been sent, so the error can only be part of the stream.
            yield self._failed(error)


def _body(content: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def _send_in_time(send: Send, message: Message) -> bool:
    """Send a message; ``False`` if the client read too little to make room for it within ``_STALL_S``."""
    try:
        async with asyncio.timeout(_STALL_S):
            await send(message)
    except TimeoutError:
        return False
    return True
