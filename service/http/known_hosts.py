"""Middleware of a server without keys that serves only under names which are known to be its own.

A web page can have its own name resolve to the server's address after the browser has loaded it (DNS
rebinding). To the browser, the page and the server are then the same site. The name in the Host header is
the page's, which gives it away. A server with keys does not need this, because the page has no key.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.responses import refuse

# They tell nothing but whether the server is up, and come from load balancers under any name.
PROBES = frozenset({"/healthz", "/readyz", "/health"})


class KnownHosts:
    """The server's own names: loopback names, the address of the connection, and configured names."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)

    def unknown(self, scope: Scope) -> str | None:
        """The host for which a request is, if it is not one of the names; otherwise ``None``."""
        host = _host_of(scope)
        return None if host is None or self._is_known(host, scope) else host

    def _is_known(self, host: str, scope: Scope) -> bool:
        address = (scope.get("server") or ("",))[0]  # of this server, as the connection was made
        return host in self._hosts or host == address or _is_loopback(host)


class KnownHostsMiddleware:
    """Answers 403 to requests for a host that is not one of :class:`KnownHosts`."""

    def __init__(self, app: ASGIApp, *, known: KnownHosts) -> None:
        self._app, self._known = app, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the host and pass the request on."""
        if scope["type"] == "http" and scope["path"] not in PROBES:
            host = self._known.unknown(scope)
            if host is not None:
                message = (
                    f"this server does not know {host[:100]!r} as its own name, and without API keys it "
                    "serves only under names that it knows; add the name with --hosts, or set "
                    "--auth.keys-file"
                )
                await refuse(scope, send, 403, "forbidden", message)
                return
        await self._app(scope, receive, send)


def _host_of(scope: Scope) -> str | None:
    """The Host header without its port; ``None`` if there is none, as in HTTP/1.0."""
    for name, value in scope["headers"]:
        if name == b"host":
            host: str = value.decode("latin-1").strip().lower()
            if not host.startswith("["):
                host = host.partition(":")[0]
            return host.partition("]")[0].removeprefix("[").removesuffix(".")
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.endswith(".localhost")
