"""``GET /``, ``/docs`` and ``/page/...``: the web page and its files."""

from __future__ import annotations

from functools import cache

from fastapi import APIRouter, Request, Response

from service.page import DOCS, DOCUMENTS, INDEX, PAGE_POLICY, page_files, read_asset
from vbon.errors import NotFoundError
from vbon.threads import Threads

router = APIRouter(include_in_schema=False)

_READ = ["GET", "HEAD"]


@router.api_route("/", methods=_READ)
async def get_page(request: Request) -> Response:
    """The web page."""
    return await _send(request, INDEX, {"content-security-policy": PAGE_POLICY})


@router.api_route("/docs", methods=_READ)
async def get_docs(request: Request) -> Response:
    """The API documentation: Swagger UI for ``/openapi.json``."""
    return await _send(request, DOCS, {"content-security-policy": PAGE_POLICY})


@router.api_route("/page/{name:path}", methods=_READ)
async def get_page_file(request: Request, name: str) -> Response:
    """One of the page's files: a script, the style sheet, an icon or a part of Swagger UI."""
    if name in DOCUMENTS or name not in page_files():
        raise NotFoundError(f"the page has no file {name!r}")
    return await _send(request, name, {})


@cache
def _threads() -> Threads:
    """Threads that only the page's files use, so that the page comes whatever else is slow."""
    return Threads("page", 2)


async def _send(request: Request, name: str, headers: dict[str, str]) -> Response:
    asset = await _threads().run(read_asset, name)
    headers |= {
        "etag": asset.etag,
        "cache-control": asset.cache_control,
        "vary": "accept-encoding",
    }
    known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    content = asset.content
    if asset.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["content-encoding"] = asset.packed, "gzip"
    headers |= {"content-type": asset.media_type, "content-length": str(len(content))}
    return Response(content if request.method == "GET" else b"", headers=headers)
