"""The client of the wire: calls the methods of an object that a server has."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextvars import Context
from typing import Any

import msgspec

from service.wire import messages
from service.wire.connection import Connection, connect
from service.wire.errors import ConnectionLostError, WireError, rebuilt_error
from service.wire.interface import Interface, Method, read_value
from service.wire.messages import MAX_BYTES, WINDOW
from service.wire.timing import Timing
from vbon.errors import VbonError
from vbon.trace_context import trace_headers

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0


class WireClient:
    """One connection to a :class:`~service.wire.server.WireServer`.

    When the server dies, leaves the network or is silent for too long, every open call ends with
    :class:`ConnectionLostError`, and so does every later one until :meth:`connect` is called again.

    Attributes:
        leaving: whether the server takes no new calls, because it is about to end.

    Args:
        interface: the server's.
        max_bytes: limit of one argument list, result or item; the server's.
    """

    def __init__(
        self,
        address: str,
        interface: Interface,
        *,
        secret: str = "",
        timing: Timing | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.address = address
        self.leaving = False
        self._interface, self._secret = interface, secret
        self._timing, self._max_bytes = timing or Timing(), max_bytes
        self._connection: Connection | None = None
        self._welcome: asyncio.Future[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._calls: dict[int, _Call] = {}
        self._frames: list[bytes] = []
        self._next, self._missed = 0, 0
        self._why = "there is no connection yet"
        self._lost = asyncio.Event()
        self._lost.set()

    @property
    def connected(self) -> bool:
        """True from the server's welcome until the connection is lost or closed."""
        return self._welcome is not None and self._welcome.done() and not self._lost.is_set()

    async def connect(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect and greet the server; also once a connection is lost.

        Raises:
            ConnectionLostError: nobody listens, the server refuses, or it does not answer in time.
        """
        self.close()
        self._lost.clear()
        self.leaving = False
        self._missed = 0
        self._welcome = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                self._connection = await connect(self.address, self._made)
                hello = messages.Hello(messages.VERSION, self._secret)
                self._connection.send([messages.encoded(hello)])
                if not self._connection.open:
                    self._gone(self._connection)
                await asyncio.shield(self._welcome)
        except TimeoutError as error:
            self._end(f"no answer in {timeout_s:g} s")
            raise self._error() from error
        except OSError as error:
            self._end(f"nobody listens ({error})")
            raise self._error() from error
        except BaseException:
            self._end("connecting was given up")
            raise
        self._beating = asyncio.create_task(self._beat(), context=Context())

    def close(self) -> None:
        """Close the connection, so that the server cancels what is under way; safe to call twice."""
        self._end("the connection was closed")

    async def lost(self) -> None:
        """Wait until there is no connection."""
        await self._lost.wait()

    async def call(self, method: str, *args: Any) -> Any:
        """The result of a method that returns one. A caller that is cancelled aborts the call.

        Raises:
            VbonError: as the method.
            ConnectionLostError: the server has died, or does not answer.
            LeavingError: the server takes no new calls.
            WireError: arguments or result cannot be sent, or the method failed in an unforeseen way.
        """
        call = self._open(method, args)
        try:
            while not call.ended:
                await call.wait()
        finally:
            self._forget(call)
        return read_value(call.method.result, call.result(), f"the result of {method}")

    async def stream(self, method: str, *args: Any) -> AsyncGenerator[Any, None]:
        """The items of a method that yields some. Leaving the iterator aborts the call.

        A client that is slow to take items holds the server's generator up, after :data:`WINDOW` items.

        Raises:
            VbonError: as :meth:`call`.
        """
        call = self._open(method, args)
        taken = 0
        try:
            while True:
                while call.items:
                    item = call.items.popleft()
                    taken += 1
                    if taken == WINDOW // 2 and not call.ended:
                        self._put(messages.More(call.number, taken))
                        taken = 0
                    yield read_value(call.method.result, item, f"an item of {method}")
                if call.ended:
                    break
                await call.wait()
        finally:
            self._forget(call)
        call.result()

    async def batches(self, method: str, *args: Any) -> AsyncGenerator[list[Any], None]:
        """The items of a method that yields some, those that have arrived together; as :meth:`stream`."""
        call = self._open(method, args)
        taken = 0
        try:
            while True:
                if call.items:
                    items = [
                        read_value(call.method.result, item, f"an item of {method}")
                        for item in call.items
                    ]
                    call.items.clear()
                    taken += len(items)
                    if taken >= WINDOW // 2 and not call.ended:
                        self._put(messages.More(call.number, taken))
                        taken = 0
                    yield items
                elif call.ended:
                    break
                else:
                    await call.wait()
        finally:
            self._forget(call)
        call.result()

    def tell(self, method: str, *args: Any) -> None:
        """Call a method without waiting for an answer; nothing happens if there is no connection.

        Raises:
            WireError: the arguments cannot be sent.
        """
        value = messages.value_of(args, self._max_bytes)
        if self.connected:
            self._put(messages.Tell(method, value))

    def _open(self, method: str, args: tuple[Any, ...]) -> _Call:
        if not self.connected:
            raise self._error()
        value = messages.value_of(args, self._max_bytes)
        self._next += 1
        call = _Call(self._next, self._interface[method])
        self._calls[call.number] = call
        self._put(messages.Start(call.number, method, value, dict(trace_headers.get())))
        return call

    def _forget(self, call: _Call) -> None:
        self._calls.pop(call.number, None)
        if not call.ended and self.connected:
            self._put(messages.Stop(call.number))

    def _put(self, message: msgspec.Struct) -> None:
        if not self._frames:
            asyncio.get_running_loop().call_soon(self._flush, context=Context())
        self._frames.append(messages.encoded(message))

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if self._connection is not None and frames:
            self._connection.send(frames)

    def _made(self) -> Connection:
        return Connection(
            self._received, self._oversized, self._gone, max_bytes=self._max_bytes + 1024
        )

    def _oversized(self, connection: Connection, length: int) -> None:
        if connection is self._connection:
            self._end(f"the server sent a message of {length:,} bytes")

    def _gone(self, connection: Connection) -> None:
        if connection is self._connection:
            self._end("the other process has ended")

    def _received(self, connection: Connection, frames: list[bytes]) -> None:
        if connection is not self._connection:
            return
        self._missed = 0
        for frame in frames:
            try:
                message = messages.from_server.decode(frame)
            except (msgspec.DecodeError, ValueError, RecursionError):
                self._end("the server sent a malformed message")
                return
            self._take(message)
            if self._connection is None:  # the server has refused it
                return

    def _take(self, message: Any) -> None:
        match message:
            case messages.Item() if message.call in self._calls:
                self._calls[message.call].add(message.value)
            case messages.Ended() if message.call in self._calls:
                self._calls[message.call].end(message.value)
            case messages.Failed() if message.call in self._calls:
                self._calls[message.call].end(rebuilt_error(message.error))
            case messages.Leaving():
                self.leaving = True
            case messages.Refused():
                self._end(message.reason)
            case messages.Welcome() if self._welcome is not None and not self._welcome.done():
                self._welcome.set_result(None)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._timing.beat_s)
            self._missed += 1
            if self._missed > self._timing.most_missed:
                self._end(f"no sign of life for {self._timing.silence_s:g} s")
                return
            self._put(messages.Beat())

    def _end(self, why: str) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
        if self._lost.is_set():
            return
        self._why = why
        self._lost.set()
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        self._frames.clear()
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(self._error())
            self._welcome.exception()  # seen, if nobody waits for it any more
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.end(self._error())

    def _error(self) -> ConnectionLostError:
        return ConnectionLostError(f"the connection to {self.address} is lost: {self._why}")


class _Call:
    """One call as its caller sees it."""

    def __init__(self, number: int, method: Method) -> None:
        self.number, self.method = number, method
        self.items: deque[msgspec.Raw] = deque()
        self.ended = False
        self._outcome: msgspec.Raw | VbonError = messages.NOTHING
        self._waiter: asyncio.Future[None] | None = None

    def add(self, item: msgspec.Raw) -> None:
        """Keep an item."""
        self.items.append(item)
        self._wake()

    def end(self, outcome: msgspec.Raw | VbonError) -> None:
        """Keep the result, or the error."""
        self._outcome, self.ended = outcome, True
        self._wake()

    def result(self) -> msgspec.Raw:
        """The result; raises the error that there was."""
        if isinstance(self._outcome, VbonError):
            raise self._outcome
        return self._outcome

    async def wait(self) -> None:
        """Wait for an item or the end."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


__all__ = ["CONNECT_TIMEOUT_S", "WireClient", "WireError"]
