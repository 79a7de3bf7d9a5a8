"""What browsers may do with answers, and which pages may ask through them for a change."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vbon.errors import ForbiddenError

# A report brings its own scripts; in a sandbox it is of no origin and cannot speak to this service.
REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DEFAULTS = {
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}


class SecurityHeadersMiddleware:
    """Fills in the headers that a route has not set itself; a page brings its own policy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                missing = [field for field in _DEFAULTS.items() if field[0] not in present]
                message["headers"] = [*message["headers"], *missing]
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def refuse_other_sites(request: Request) -> None:
    """Refuse what another site's page asks for in its visitor's name.

    Browsers say where a request comes from; clients that are no browsers say nothing and pass.

    Raises:
        ForbiddenError: it comes from another origin.
    """
    site = request.headers.get("sec-fetch-site", "none")
    origin = request.headers.get("origin")
    foreign = origin is not None and _host_of(origin) != request.headers.get("host")
    if site not in {"none", "same-origin"} or foreign:
        raise ForbiddenError("only this service's own page may ask for this from a browser")


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # "http://[", say: no browser's, and nobody's own
        return None
