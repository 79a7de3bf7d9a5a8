"""An httpx transport for requests that get cancelled: a connection each, closed whatever happens to it.

httpcore's pool (1.0.9) loses connections whose request is cancelled at an unlucky moment: neither idle
nor closed, they count against its limit for good and keep their sockets open (encode/httpcore#1093,
#830, #658). Best-of-N cancels all the time: a client leaves, a candidate fails and takes the others
with it, a time limit ends. Here nothing outlives its request that did not end by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx


class OneConnectionEach(httpx.AsyncBaseTransport):
    """As many connections as requests in flight; who sends bounds those. Idle ones are used again.

    Proxies are those of the environment, as httpx takes them by itself.

    Args:
        url: of the server, for the choice of the proxy.
        keep_idle_s: how long a connection is kept for the next request, seconds.

    Attributes:
        proxy: its URL, if there is one to be used.
    """

    def __init__(self, url: str, *, keep_idle_s: float) -> None:
        self._tls = httpx.create_ssl_context()
        self.proxy = _proxy_for(url)
        self._keep_idle_s = keep_idle_s
        self._idle: deque[tuple[httpx.AsyncHTTPTransport, float]] = deque()
        self._closing: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._in_use: set[httpx.AsyncHTTPTransport] = set()

    @property
    def open(self) -> int:
        """Connections in use, kept or being closed."""
        return len(self._in_use) + len(self._idle) + len(self._closing)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it over a connection of its own."""
        connection = self._take()
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            self._discard(connection)
            raise
        body = response.stream
        assert isinstance(body, httpx.AsyncByteStream)
        response.stream = _Body(body, connection, self)
        return response

    async def aclose(self) -> None:
        """Close them all, those in use too."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in [*self._in_use, *(connection for connection, _ in self._idle)]:
            self._discard(connection)
        self._idle.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def keep(self, connection: httpx.AsyncHTTPTransport) -> None:
        """Its request has ended well."""
        if connection not in self._in_use:  # closed meanwhile
            return
        self._in_use.remove(connection)
        self._idle.append((connection, _now()))
        if self._sweep is None:
            self._close_old()

    def discard(self, connection: httpx.AsyncHTTPTransport) -> None:
        """Its request has not; closed in the background, for whoever was cancelled cannot wait."""
        if connection in self._in_use:
            self._discard(connection)

    def _take(self) -> httpx.AsyncHTTPTransport:
        if self._idle:
            connection, _ = self._idle.pop()  # the youngest, so that those not needed grow old
        else:
            connection = httpx.AsyncHTTPTransport(
                verify=self._tls,
                proxy=self.proxy,
                limits=httpx.Limits(max_connections=1, keepalive_expiry=self._keep_idle_s),
            )
        self._in_use.add(connection)
        return connection

    def _discard(self, connection: httpx.AsyncHTTPTransport) -> None:
        self._in_use.discard(connection)
        closing = asyncio.create_task(connection.aclose(), name="close-connection")
        self._closing.add(closing)
        closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Task[None]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled():
            closing.exception()  # a socket that cannot be closed well is closed all the same

    def _close_old(self) -> None:
        """Close what has idled long enough; come back when the next will have."""
        self._sweep = None
        while self._idle and _now() - self._idle[0][1] >= self._keep_idle_s:
            self._discard(self._idle.popleft()[0])
        if self._idle:
            due = self._idle[0][1] + self._keep_idle_s
            self._sweep = asyncio.get_running_loop().call_at(due, self._close_old)


class _Body(httpx.AsyncByteStream):
    """A response's body, which says what becomes of the connection."""

    def __init__(
        self,
        body: httpx.AsyncByteStream,
        connection: httpx.AsyncHTTPTransport,
        owner: OneConnectionEach,
    ) -> None:
        self._body, self._connection, self._owner = body, connection, owner
        self._whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._body:
            yield piece
        self._whole = True

    async def aclose(self) -> None:
        if not self._whole:
            self._owner.discard(self._connection)
            return
        try:
            await self._body.aclose()
        except BaseException:
            self._owner.discard(self._connection)
            raise
        self._owner.keep(self._connection)


def _proxy_for(url: str) -> str | None:
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _now() -> float:
    return asyncio.get_running_loop().time()
