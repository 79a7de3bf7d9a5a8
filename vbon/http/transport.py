"""An httpx transport over aiohttp, for requests that are often cancelled.

httpx's own connection pool (httpcore 1.0.9) loses connections whose request is cancelled at an unlucky
moment: they are neither idle nor closed, keep their sockets open and count against the pool's limit for
good (encode/httpcore#1093, #830, #658). Best-of-N cancels all the time: a client leaves, a candidate fails
and takes the others with it, or a time limit ends. aiohttp closes the connection of a cancelled request,
and costs 0.6 times the CPU time of httpcore (docs/log.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from yarl import URL

# A connect timeout that fires later than this share of its length shows that this process was stalled.
_LATE = 0.25
# The httpx error of each aiohttp error; the first that fits counts.
_HTTPX_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ClientProxyConnectionError, httpx.ProxyError),
    (aiohttp.ClientHttpProxyError, httpx.ProxyError),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
    (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),
    (aiohttp.ClientResponseError, httpx.RemoteProtocolError),
    (aiohttp.InvalidURL, httpx.UnsupportedProtocol),
    (aiohttp.ClientConnectionError, httpx.ReadError),
    (aiohttp.ClientError, httpx.TransportError),
)


class AiohttpTransport(httpx.AsyncBaseTransport):
    """A transport with as many connections as there are requests in flight; idle ones are reused.

    The caller limits how many requests are in flight. Responses are not decompressed. Of httpx's timeouts
    only the one for connecting is observed, and it is restarted if this process was stalled meanwhile.

    Args:
        url: the server's URL, which decides about the proxy.
        keep_idle_s: seconds for which an idle connection may be reused.

    Attributes:
        proxy: URL of the environment's proxy for this server, or ``None`` if there is none.
    """

    def __init__(self, url: str, *, keep_idle_s: float) -> None:
        self.proxy = _proxy_for(url)
        self._tls = httpx.create_ssl_context() if url.startswith("https://") else True
        self._keep_idle_s = keep_idle_s
        self._session: aiohttp.ClientSession | None = None  # needs a running event loop

    @property
    def open(self) -> int:
        """The number of open connections, idle ones included."""
        connector = self._session and self._session.connector
        if not connector:
            return 0
        return len(connector._acquired) + sum(map(len, connector._conns.values()))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the response as soon as its headers have arrived."""
        content = await request.aread()
        connect_s = request.extensions.get("timeout", {}).get("connect")
        while True:
            begun = _now()
            try:
                return await self._send(request, content, connect_s)
            except httpx.ConnectTimeout:
                if _now() - begun < (1 + _LATE) * connect_s:
                    raise
                # The timeout fired late, so this process did not run for a while. The server may have
                # accepted in time, and must not be blamed.

    async def _send(
        self, request: httpx.Request, content: bytes, connect_s: float | None
    ) -> httpx.Response:
        if self._session is None:
            self._session = self._new_session()
        with _httpx_errors():
            response = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=[(name.decode(), value.decode()) for name, value in request.headers.raw],
                data=content or None,
                allow_redirects=False,
                proxy=self.proxy,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
            )
        return httpx.Response(
            response.status, headers=list(response.raw_headers), stream=_Body(response)
        )

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=self._keep_idle_s, ssl=self._tls
        )
        return aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def aclose(self) -> None:
        """Close all connections, including those in use."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Body(httpx.AsyncByteStream):
    """A response's body. Closing it early closes the connection, so the server stops working on it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _httpx_errors():
            async for piece in self._response.content.iter_any():
                yield piece

    async def aclose(self) -> None:
        # A connection whose body was read to the end has gone back to the pool by itself.
        self._response.close()


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """Raise aiohttp's errors as the httpx errors that callers handle."""
    try:
        yield
    except aiohttp.ClientError as error:
        kind = next(ours for theirs, ours in _HTTPX_ERRORS if isinstance(error, theirs))
        raise kind(str(error) or type(error).__name__) from error


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL, as httpx itself would choose it."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _now() -> float:
    return asyncio.get_running_loop().time()
