"""SHA-256 checksums of a directory's files, kept in ``checksums.json`` beside them.

Sizes and headers reveal a truncated file, but only the content reveals a flipped bit. The model card is
not listed, since people may edit it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHECKSUMS, CARD = "checksums.json", "README.md"
_SEAL = "seal"
_BLOCK, _MAX_THREADS = 64 * 1024, 8


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hex; reads the file once, in blocks, mostly without holding the GIL."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as handle:
        while size := handle.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def checksums_of(directory: Path, *, recursive: bool = False) -> dict[str, dict[str, Any]]:
    """The size and SHA-256 of a directory's files, as ``{path: {"bytes", "sha256"}}``.

    Args:
        recursive: include the files of all subdirectories.
    """
    found = directory.rglob("*") if recursive else directory.iterdir()
    files = sorted(f for f in found if f.is_file() and f.name not in {CHECKSUMS, CARD})
    return {
        file.relative_to(directory).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, _digests(files), strict=True)
    }


def find_damage(directory: Path, sums: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Describe the first file that differs from its recorded checksum; ``None`` if all match.

    Sizes are compared first. Then every file is read once, several at a time.
    """
    files = [directory / name for name in sums]
    for file, recorded in zip(files, sums.values(), strict=True):
        if not file.is_file():
            return f"{file} is missing"
        size = file.stat().st_size
        if size != recorded["bytes"]:
            return f"{file} is truncated or damaged: {size} bytes, {recorded['bytes']} were written"
    for file, recorded, digest in zip(files, sums.values(), _digests(files), strict=True):
        if digest != recorded["sha256"]:
            return (
                f"{file}: its content is not what was written (SHA-256 is {digest[:16]}..., "
                f"recorded was {recorded['sha256'][:16]}...)"
            )
    return None


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a digest of its own content added."""
    return {**record, _SEAL: _seal(record)}


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Tell whether a record still has the content that :func:`sealed` digested."""
    return record.get(_SEAL) == _seal({k: v for k, v in record.items() if k != _SEAL})


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digests(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(sha256_of, files))
