"""What a browser may do with our pages, and which pages may ask us to change something."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from bestofn.errors import ForbiddenError

# plotly adds one empty <style> and fills it through the DOM; the hash is that of the empty text, so
# that no style written into the page counts. Its camera button makes blob: and data: images.
_EMPTY_STYLE = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
PAGE_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {_EMPTY_STYLE}",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
# A report brings its own scripts; in a sandbox it is of no origin and cannot speak to this service.
REPORT_POLICY = "; ".join(
    [
        "sandbox allow-scripts allow-downloads",
        "default-src 'none'",
        "script-src 'unsafe-inline'",
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


def page_headers(policy: str = PAGE_POLICY) -> dict[str, str]:
    """Headers of every page and file."""
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }


async def refuse_other_sites(request: Request) -> None:
    """Refuse what another site's page asks for in its visitor's name.

    Browsers say where a request comes from; clients that are no browsers say nothing and pass.

    Raises:
        ForbiddenError: it comes from another origin.
    """
    site = request.headers.get("sec-fetch-site", "none")
    origin = request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if site not in {"none", "same-origin"} or foreign:
        raise ForbiddenError("only this service's own page may ask for this from a browser")
