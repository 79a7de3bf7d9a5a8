"""Route dependency that rejects requests which another site's page sends through a visitor's browser."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from vbon.errors import ForbiddenError


async def require_same_origin(request: Request) -> None:
    """Reject requests that a browser sends from another origin.

    Browsers name the origin of the page in ``Sec-Fetch-Site`` and ``Origin``. Other clients send neither
    header and pass. Behind a proxy that does not forward the ``Host`` of the page, the page's own origin is
    known if it is one of ``cors_origins``.

    Raises:
        ForbiddenError: the request comes from another origin.
    """
    site = request.headers.get("sec-fetch-site", "none")
    origin = request.headers.get("origin")
    allowed = request.app.state.runtime.settings.cors_origins
    foreign = (
        origin is not None
        and origin not in allowed
        and _host_of(origin) != request.headers.get("host")
    )
    if site not in {"none", "same-origin"} or foreign:
        raise ForbiddenError("a browser may send this request only from this service's own page")


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # a malformed origin such as "http://[" belongs to no page
        return None
