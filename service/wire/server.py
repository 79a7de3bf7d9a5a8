"""The server of the wire: calls the methods of one object for its clients."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from contextvars import Context, ContextVar
from typing import Any

import msgspec

from service.observability.withheld import without_text
from service.wire import messages
from service.wire.connection import Connection, Listener
from service.wire.errors import LeavingError, WireError, error_parts
from service.wire.interface import Interface, Method, read_value
from service.wire.messages import MAX_BYTES, WINDOW
from service.wire.timing import Timing
from vbon.errors import VbonError
from vbon.trace_context import trace_headers

logger = logging.getLogger(__name__)

# Limit of what a client may send before it has shown that it knows the secret.
_HELLO_BYTES = 4096
# A frame is a little longer than the value in it.
_AROUND_BYTES = 1024

# The client whose call a method of the target runs for; clients that connect again are new ones.
current_client: ContextVar[str] = ContextVar("current_client", default="")


class WireServer:
    """Serves an object at ``ipc://PATH`` or ``tcp://IP:PORT`` (a port of ``*`` is any free one).

    A client must know the secret. When it stops a call, leaves, dies or is silent for too long
    (:class:`~service.wire.timing.Timing`), its calls are cancelled. A stream is only read on while its client
    takes the items.

    Attributes:
        secret: the word that clients must know; a random one unless one is given.

    Args:
        target: the object whose methods are called, in this event loop.
        interface: the methods that clients may call.
        on_left: called with the name of each client (:data:`current_client`) that is gone, after its calls
            were cancelled.
        max_bytes: limit of one argument list, result or item.
    """

    def __init__(
        self,
        address: str,
        target: object,
        interface: Interface,
        *,
        secret: str | None = None,
        timing: Timing | None = None,
        on_left: Callable[[str], None] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.secret = secrets.token_hex(16) if secret is None else secret
        self._address, self._target, self._interface = address, target, interface
        self._timing = timing or Timing()
        self._on_left, self._max_bytes = on_left, max_bytes
        self._clients: dict[Connection, _Client] = {}
        self._listener: Listener | None = None
        self._beating: asyncio.Task[None] | None = None
        self._leaving = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._call_ended = asyncio.Event()

    @property
    def address(self) -> str:
        """The address that clients connect to."""
        return self._address

    @property
    def clients(self) -> int:
        """The number of clients that have greeted the server and are connected."""
        return sum(client.greeted for client in self._clients.values())

    @property
    def calls(self) -> int:
        """The number of calls that have not ended, without those that last as long as a connection."""
        return sum(client.calls_to_finish for client in self._clients.values())

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            WireError: the address cannot be used.
        """
        try:
            self._listener = await Listener.open(self._address, self._made)
        except OSError as error:
            raise WireError(
                f"cannot listen at {self._address}: {error}; choose another address"
            ) from error
        self._address = self._listener.address
        self._beating = asyncio.create_task(self._beat(), context=Context())

    async def drain(self, limit_s: float) -> int:
        """Take no new calls, wait until those under way have ended, and return how many have not in time."""
        self._leaving = True
        for client in list(self._clients.values()):
            if client.greeted:
                client.put(messages.Leaving())
                client.end_lasting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.calls:
                    self._call_ended.clear()
                    await self._call_ended.wait()
        return self.calls

    async def stop(self) -> None:
        """Cancel all calls, tell the clients, and close the socket; safe to call twice."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for client in list(self._clients.values()):
            self._refuse(client, "the server has ended")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def run(self, work: Coroutine[Any, Any, None], context: Context) -> asyncio.Task[None]:
        """Run a call as a task, which :meth:`stop` waits for."""
        task = asyncio.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._call_ended.set()

    # Clients

    def _made(self) -> Connection:
        return Connection(
            self._received,
            self._oversized,
            self._lost,
            max_bytes=min(_HELLO_BYTES, self._max_bytes + _AROUND_BYTES),
            on_made=self._connected,
        )

    def _connected(self, connection: Connection) -> None:
        self._clients[connection] = _Client(self, connection)

    def _received(self, connection: Connection, frames: list[bytes]) -> None:
        client = self._clients.get(connection)
        for frame in frames:
            if client is None or connection not in self._clients:  # refused
                return
            try:
                message = messages.from_client.decode(frame)
            except (msgspec.DecodeError, ValueError, RecursionError):
                self._refuse(client, "a message is malformed")
                return
            if client.greeted:
                client.missed = 0
                client.take(message)
            else:
                self._greet(client, message)

    def _oversized(self, connection: Connection, length: int) -> None:
        if (client := self._clients.get(connection)) is not None:
            most = self._max_bytes if client.greeted else min(_HELLO_BYTES, self._max_bytes)
            reason = f"a message has {length:,} bytes; at most {most:,} are taken"
            self._refuse(client, reason)

    def _greet(self, client: _Client, hello: Any) -> None:
        if not isinstance(hello, messages.Hello):
            self._refuse(client, "the client has not greeted the server")
        elif not hmac.compare_digest(hello.secret.encode(), self.secret.encode()):
            self._refuse(client, "the secret is wrong; use that of this fleet")
        elif hello.version != messages.VERSION:
            self._refuse(
                client,
                f"the client has version {hello.version} of the protocol, the server {messages.VERSION}; "
                "install the same version of vbon in both",
            )
        else:
            client.greeted, client.missed = True, 0
            client.connection.max_bytes = self._max_bytes + _AROUND_BYTES
            client.put(messages.Welcome(messages.VERSION))
            if self._leaving:
                client.put(messages.Leaving())

    def _refuse(self, client: _Client, reason: str) -> None:
        """End a connection with a reason."""
        client.connection.send([messages.encoded(messages.Refused(reason))])
        client.connection.close()
        self._drop(client)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._timing.beat_s)
            for client in list(self._clients.values()):
                client.missed += 1
                if client.missed > self._timing.most_missed:
                    logger.warning(
                        "a client of %s is silent; its calls are cancelled", self._address
                    )
                    self._refuse(client, "the client was silent for too long")
                elif client.greeted:
                    client.connection.send([messages.BEAT])

    def _lost(self, connection: Connection) -> None:
        if (client := self._clients.get(connection)) is not None:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.connection, None) is None:
            return
        client.end()
        if self._on_left is not None and client.greeted:
            self._on_left(client.name)


class _Client:
    """A client with its calls.

    Attributes:
        greeted: whether it knows the secret; until then it can do nothing.
        missed: the server's heartbeats since its last message.
    """

    def __init__(self, server: WireServer, connection: Connection) -> None:
        self.connection, self.name = connection, secrets.token_hex(8)
        self.greeted = False
        self.missed = 0
        self._server = server
        self._calls: dict[int, _Call] = {}
        self._told: set[asyncio.Task[None]] = set()
        self._frames: list[bytes] = []

    @property
    def calls_to_finish(self) -> int:
        """The number of calls that a server which leaves waits for."""
        return sum(not call.method.lasting for call in self._calls.values())

    def take(self, message: Any) -> None:
        """Do what the client asks for."""
        match message:
            case messages.Start():
                self._start(message)
            case messages.More():
                if (call := self._calls.get(message.call)) is not None:
                    call.allow(message.items)
            case messages.Stop():
                if (call := self._calls.pop(message.call, None)) is not None:
                    call.cancel()
            case messages.Tell():
                self._tell(message)

    def put(self, message: msgspec.Struct) -> None:
        """Send a message, together with all others of this turn of the loop."""
        if not self._frames:
            asyncio.get_running_loop().call_soon(self._flush, context=Context())
        self._frames.append(messages.encoded(message))

    def ended(self, call: int) -> None:
        """Forget a call."""
        self._calls.pop(call, None)

    def end_lasting(self) -> None:
        """End the calls that last as long as the connection."""
        gone = error_parts(LeavingError("the server is about to end"))
        for number, call in list(self._calls.items()):
            if call.method.lasting:
                del self._calls[number]
                call.cancel()
                self.put(messages.Failed(number, gone))

    def end(self) -> None:
        """Cancel everything."""
        for call in list(self._calls.values()):
            call.cancel()
        for task in self._told:
            task.cancel()
        self._calls.clear()

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        self.connection.send(frames)

    def _start(self, message: messages.Start) -> None:
        try:
            method, args = self._method(message.method, message.args)
            if self._server._leaving:
                raise LeavingError("the server is about to end; ask another one")
        except WireError as error:
            self.put(messages.Failed(message.call, error_parts(error)))
            return
        call = _Call(self, message.call, method, self._server._max_bytes)
        self._calls[message.call] = call
        context = Context()
        context.run(current_client.set, self.name)
        context.run(trace_headers.set, message.trace)
        work = call.run(getattr(self._server._target, message.method), args)
        call.task = self._server.run(work, context)

    def _tell(self, message: messages.Tell) -> None:
        try:
            _, args = self._method(message.method, message.args)
        except WireError as error:
            logger.warning("a message to %s was ignored: %s", message.method, error)
            return
        context = Context()
        context.run(current_client.set, self.name)
        work = self._heard(getattr(self._server._target, message.method), args)
        task = self._server.run(work, context)
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    async def _heard(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            await function(*args)
        except Exception as error:  # nobody waits for it
            logger.error("a call failed", exc_info=without_text(error))

    def _method(self, name: str, args: msgspec.Raw) -> tuple[Method, tuple[Any, ...]]:
        method = self._server._interface.get(name)
        if method is None:
            raise WireError(
                f"the server has no method {name!r:.60}; both processes must have the same version of vbon"
            )
        return method, read_value(method.arguments, args, f"the arguments of {name}")


class _Call:
    """One call.

    Attributes:
        task: the task in which it runs.
    """

    def __init__(self, client: _Client, number: int, method: Method, max_bytes: int) -> None:
        self.method = method
        self._client, self._number, self._max_bytes = client, number, max_bytes
        self._allowed = WINDOW
        self._more = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Abort the call; nothing more is sent of it."""
        if self.task is not None:
            self.task.cancel()

    def allow(self, items: int) -> None:
        """Let the stream send so many more items."""
        self._allowed += items
        self._more.set()

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Call the method and send what comes of it."""
        try:
            if self.method.streams:
                await self._send_items(function(*args))
                value = messages.NOTHING
            else:
                value = messages.value_of(await function(*args), self._max_bytes)
            self._client.put(messages.Ended(self._number, value))
        except VbonError as error:
            self._client.put(messages.Failed(self._number, error_parts(error)))
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            self._fail_unexpectedly(WireError("the call was cancelled by the server"))
        except Exception as error:  # any failure is the caller's to know
            logger.error("a call failed", exc_info=without_text(error))
            self._fail_unexpectedly(WireError(f"the call failed: {type(error).__name__}"))
        finally:
            self._client.ended(self._number)

    def _fail_unexpectedly(self, error: WireError) -> None:
        self._client.put(messages.Failed(self._number, error_parts(error)))

    async def _send_items(self, items: Any) -> None:
        async with aclosing(items):
            async for item in items:
                while self._allowed <= 0:
                    self._more.clear()
                    await self._more.wait()
                self._allowed -= 1
                value = messages.value_of(item, self._max_bytes)
                self._client.put(messages.Item(self._number, value))


def _cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
