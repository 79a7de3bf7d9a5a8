"""HTTP/1.1 over plain streams, for loads.

On a small machine what the client costs is taken from the server, and httpx's connection pool costs some
20 ms a request with 256 in flight: it walks all of them for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from urllib.parse import SplitResult, urlsplit

_LIMIT = 2**20  # most bytes of a header or of one line


class ProtocolError(Exception):
    """What came back is not HTTP as servers speak it."""


class StaleConnectionError(Exception):
    """The server had closed a kept connection before it saw the request; another one may be tried."""


class Response:
    """A status, and a body that is read once, whole or in pieces as they arrive."""

    def __init__(self, reader: asyncio.StreamReader, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        try:
            version, status = lines[0].split(" ", 2)[:2]
            self.status = int(status)
        except ValueError as error:
            raise ProtocolError(f"no HTTP status line: {lines[0][:80]!r}") from error
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        self._reader = reader
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length")
        self._length = int(length) if length is not None and length.isdigit() else None
        closes = headers.get("connection", "").lower() == "close" or version == "HTTP/1.0"
        self.reusable = not closes and (self._chunked or self._length is not None)
        self.complete = False

    async def read(self) -> bytes:
        """The whole body."""
        if self._length is not None and not self._chunked:
            body = await self._reader.readexactly(self._length)
            self.complete = True
            return body
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives.

        Raises:
            asyncio.IncompleteReadError: the connection ended before the body.
        """
        if self._chunked:
            while size := int((await self._reader.readline()).split(b";")[0] or b"0", 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readline()
        elif self._length is None:
            while piece := await self._reader.read(65536):
                yield piece
        else:
            yield await self._reader.readexactly(self._length)
        self.complete = True


class Connection:
    """One connection; one request at a time."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: bytes
    ) -> None:
        self._reader, self._writer, self._headers = reader, writer, headers
        self._used = False

    @classmethod
    async def open(
        cls, origin: SplitResult, headers: Mapping[str, str] | None = None
    ) -> Connection:
        """Connect to the host of a URL; ``headers`` are sent with each request.

        Raises:
            OSError: it cannot be reached.
        """
        secure = origin.scheme == "https"
        reader, writer = await asyncio.open_connection(
            origin.hostname,
            origin.port or (443 if secure else 80),
            ssl=ssl.create_default_context() if secure else None,
            limit=_LIMIT,
        )
        fields = {"Host": origin.netloc, "Content-Type": "application/json", **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return cls(reader, writer, head.encode())

    @property
    def usable(self) -> bool:
        """Whether, as far as is known here, it is still open."""
        return not self._writer.is_closing() and not self._reader.at_eof()

    async def post(self, target: str, body: bytes) -> Response:
        """Send, and wait for the head of the response.

        Raises:
            StaleConnectionError: a kept connection turned out to be closed.
            OSError, asyncio.IncompleteReadError: it broke.
            ProtocolError: the answer is no HTTP.
        """
        line = f"POST {target} HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
        used, self._used = self._used, True
        try:
            self._writer.write(line + self._headers + b"\r\n" + body)
            await self._writer.drain()
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            if used and not (isinstance(error, asyncio.IncompleteReadError) and error.partial):
                raise StaleConnectionError from error
            raise
        except asyncio.LimitOverrunError as error:
            raise ProtocolError("the head of the response does not end") from error
        return Response(self._reader, head[:-4])

    async def close(self) -> None:
        """Let go; never fails."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Pool:
    """Connections to one server, opened when there is no idle one.

    Attributes:
        opened: connections opened so far.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._origin, self._request_headers = urlsplit(url), headers
        self._idle: deque[Connection] = deque()
        self.opened = 0

    @contextlib.asynccontextmanager
    async def post(self, target: str, body: bytes) -> AsyncGenerator[Response, None]:
        """Send a request; its connection is kept if the body was read to its end.

        Raises:
            As :meth:`Connection.open` and :meth:`Connection.post`; no StaleConnectionError.
        """
        connection, response = await self._send(target, body)
        try:
            yield response
        finally:
            if response.complete and response.reusable and connection.usable:
                self._idle.append(connection)
            else:
                await connection.close()

    async def _send(self, target: str, body: bytes) -> tuple[Connection, Response]:
        while True:
            connection = await self._take()
            try:
                return connection, await connection.post(target, body)
            except StaleConnectionError:
                await connection.close()  # the next one is older or new, so this ends
            except BaseException:
                await connection.close()
                raise

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            await connection.close()
        self.opened += 1
        return await Connection.open(self._origin, self._request_headers)

    async def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            await self._idle.pop().close()
