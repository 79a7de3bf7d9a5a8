"""The pages at ``/`` and ``/docs``: their files, and what a browser may do with them.

Plain ES modules and one style sheet, served as they lie in ``static/``; nothing comes from another host.
The files a request may name are those found there when the first one asks, so no path is ever made of
what a request says.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"
INDEX, DOCS = "index.html", "docs.html"
DOCUMENTS = frozenset({INDEX, DOCS})
PLOTLY = "plotly.min.js"
# Libraries are served from the packages they come with: (package, folder of it, file).
_LIBRARIES = {
    PLOTLY: ("plotly", "package_data", PLOTLY),
    "swagger-ui-bundle.js": ("fastapi_offline", "static", "swagger-ui-bundle.js"),
    "swagger-ui.css": ("fastapi_offline", "static", "swagger-ui.css"),
}

# plotly adds one empty <style> and fills it through the DOM, and one for maps, which come with it: the
# hashes are those of no text at all and of plotly 6.9's style of maps (where another version's is refused, a
# browser says so in its console, and nothing else differs). Its camera button makes a picture as a blob.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; "
    "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' "
    "'sha256-V2sIX92Uh6ZaGSFTKMHghsB85b9toJtmazgG09AI2uk='; "
    "img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml"}
_WORTH_PACKING = 1024


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent.

    Attributes:
        etag: weak, since it stands for the packed and the plain form alike.
        packed: gzip; ``None`` where that saves nothing.
    """

    content: bytes
    packed: bytes | None
    media_type: str
    etag: str
    cache_control: str


@cache
def page_files() -> dict[str, Path]:
    """Every file of the page under the name a request gives it."""
    found = {
        path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()
    }
    return found | {name: path for name in _LIBRARIES if (path := _library(name)) is not None}


@cache
def read_asset(name: str) -> Asset:
    """One of ``page_files``; read and packed the first time, which takes a while: call it in a thread."""
    path = page_files()[name]
    content = path.read_bytes()
    packed = gzip.compress(content, mtime=0) if len(content) > _WORTH_PACKING else None
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    if kind.startswith("text/"):
        kind += "; charset=utf-8"
    # Modules import each other by plain names, so a browser has to ask whether they are still the same.
    caching = "public, max-age=86400" if name in _LIBRARIES else "no-cache"
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    return Asset(content, packed, kind, etag, caching)


def _library(name: str) -> Path | None:
    """Where it lies, found without importing its package; nothing where that is not installed."""
    package, *parts = _LIBRARIES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], *parts)
