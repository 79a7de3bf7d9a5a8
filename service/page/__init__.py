"""Files of the pages at ``/`` and ``/docs``, and the content security policy of those pages.

The files are plain ES modules and style sheets, served unchanged from ``static/`` and, for what reports need
as well, from ``vbon/report_html/static/``; nothing is loaded from another host. A request can only name
files that were listed when the first request came, so no path is ever built from a request.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vbon.report_html.bundle import STATIC as SHARED
from vbon.report_html.bundle import chart_files

STATIC = Path(__file__).parent / "static"
INDEX, DOCS = "index.html", "docs.html"
DOCUMENTS = frozenset({INDEX, DOCS})
# Libraries are served from the packages that contain them: (package, folder, file).
_LIBRARIES = {
    "swagger-ui-bundle.js": ("fastapi_offline", "static", "swagger-ui-bundle.js"),
    "swagger-ui.css": ("fastapi_offline", "static", "swagger-ui.css"),
}

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; "
    "style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml"}
_MIN_PACKED_BYTES = 1024  # smaller files are not compressed


@dataclass(frozen=True, slots=True)
class Asset:
    """A file, ready to be sent.

    Attributes:
        etag: a weak one, because the compressed and the plain form share it.
        packed: the file compressed by gzip, or ``None`` if it is small.
    """

    content: bytes
    packed: bytes | None
    media_type: str
    etag: str
    cache_control: str


@cache
def page_files() -> dict[str, Path]:
    """All files of the page by the name that a request gives."""
    found = {
        path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()
    }
    found |= {name: SHARED / name for name in chart_files()}
    return found | {name: path for name in _LIBRARIES if (path := _library(name)) is not None}


@cache
def page_contents() -> dict[str, bytes]:
    """The content of all ``page_files``. Read at the start, it is there when no more files can be opened."""
    return {name: path.read_bytes() for name, path in page_files().items()}


@cache
def read_asset(name: str) -> Asset:
    """One of ``page_files``.

    The first call compresses the file, which takes a third of a second for Swagger UI: call it in a thread.
    """
    path, content = page_files()[name], page_contents()[name]
    packed = gzip.compress(content, mtime=0) if len(content) > _MIN_PACKED_BYTES else None
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    if kind.startswith("text/"):
        kind += "; charset=utf-8"
    # Modules import each other by names without a version, so a browser has to check them on each visit.
    caching = "public, max-age=86400" if name in _LIBRARIES else "no-cache"
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    return Asset(content, packed, kind, etag, caching)


def _library(name: str) -> Path | None:
    """Path of a library, found without importing its package; ``None`` if it is not installed."""
    package, *parts = _LIBRARIES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], *parts)
