"""Bytes of a file, of standard input or of a dataset directory, decompressed."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vbon.errors import DataError
from vbon.storage.atomic import read_errors

STANDARD_INPUT = "-"

_COMPRESSIONS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", gzip.decompress),
    (b"BZh", "bzip2", bz2.decompress),
    (b"\xfd7zXZ\0", "xz", lzma.decompress),
)
# Forms that are recognised only to be refused by name, each with the remedy.
_REFUSED = (
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard; decompress it with `zstd -d`"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file; save it as CSV or text"),
    (b"%PDF-", "a PDF document; extract its text first"),
    (b"SQLite format 3\0", "a SQLite database; export the table as CSV"),
)
_NAMED = 5  # files of a directory that an error names


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of one source.

    Attributes:
        name: the source for messages.
        suffix: its ending in lower case, without that of a compression: ``.jsonl`` for ``p.jsonl.gz``.
        parts: the decompressed bytes; several for a dataset directory with several files.
        sha256: hash of the bytes as stored.
        dataset: True for a directory that ``datasets`` saved.
    """

    name: str
    suffix: str
    parts: tuple[bytes, ...]
    sha256: str
    dataset: bool = False


def read_content(path: Path, what: str) -> Content:
    """Read a source once; ``-`` is standard input.

    Args:
        what: the kind of file for messages, such as ``"prompt file"``.

    Raises:
        DataError: it is missing, unreadable, damaged or of a form that cannot be read.
    """
    if str(path) == STANDARD_INPUT:
        if sys.stdin is None:
            raise DataError("standard input is closed; give a file")
        name, raw = "standard input", sys.stdin.buffer.read()
        return Content(name, "", (_decompressed(raw, name),), hashlib.sha256(raw).hexdigest())
    with read_errors(path):
        if path.is_dir():
            return _read_directory(path, what)
        if not path.exists():
            raise DataError(f"{what} {path} does not exist")
        raw = path.read_bytes()
    data = _decompressed(raw, str(path))
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[-1] in {".gz", ".bz2", ".xz"}:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    return Content(str(path), suffix, (data,), hashlib.sha256(raw).hexdigest())


def _decompressed(raw: bytes, name: str) -> bytes:
    for magic, kind, decompress in _COMPRESSIONS:
        if raw.startswith(magic):
            try:
                return decompress(raw)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise DataError(f"{name} is a damaged or truncated {kind} file: {error}") from error
    for magic, remedy in _REFUSED:
        if raw.startswith(magic):
            raise DataError(f"{name} is {remedy}")
    return raw


def _read_directory(path: Path, what: str) -> Content:
    """The Arrow files of a directory that ``Dataset.save_to_disk`` wrote."""
    state = path / "state.json"
    if not state.is_file():
        raise DataError(f"{what} {path} is a directory; {_remedy(path)}")
    try:
        names = [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state} is damaged, so {path} cannot be read as a dataset") from error
    digest, parts = hashlib.sha256(), []
    for name in names:
        if Path(name).name != name:
            raise DataError(f"{state} is damaged: {name!r} is not the name of a file beside it")
        parts.append((path / name).read_bytes())
        digest.update(parts[-1])
    return Content(str(path), ".arrow", tuple(parts), digest.hexdigest(), dataset=True)


def _remedy(path: Path) -> str:
    try:
        splits = json.loads((path / "dataset_dict.json").read_bytes())["splits"]
        return f"it has the splits {', '.join(splits)}; give one, such as {path / splits[0]}"
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        names = sorted(file.name for file in path.iterdir() if file.is_file())
    if not names:
        return "give a file"
    more = ", ..." if len(names) > _NAMED else ""
    return f"give one of its files: {', '.join(names[:_NAMED])}{more}"
