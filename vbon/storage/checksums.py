"""SHA-256 of a directory's files in ``checksums.json`` beside them: what is read is what was written.

A size and a header tell a file cut short from a whole one; only the content tells a flipped bit.
The model card is not listed, since it is for people to edit.
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
_BLOCK, _AT_ONCE = 64 * 1024, 8


def sha256_of(path: Path) -> str:
    """In hex; reads the file once, in blocks, mostly without the interpreter's lock."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as handle:
        while size := handle.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def sums_of(directory: Path, *, below: bool = False) -> dict[str, dict[str, Any]]:
    """``{path: {"bytes", "sha256"}}`` of the files of a directory.

    Args:
        below: those of its subdirectories too.
    """
    found = directory.rglob("*") if below else directory.iterdir()
    files = sorted(f for f in found if f.is_file() and f.name not in {CHECKSUMS, CARD})
    return {
        file.relative_to(directory).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, _digests(files), strict=True)
    }


def damage(directory: Path, sums: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What is wrong with the first file that is not as it was written; names it.

    Reads every file once, several at a time; sizes are compared before.
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
                f"{file}: its content is not what was written: SHA-256 {digest[:16]}..., "
                f"{recorded['sha256'][:16]}... was recorded"
            )
    return None


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON record with a digest of itself."""
    return {**record, _SEAL: _seal(record)}


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether a record is as :func:`sealed` made it."""
    return record.get(_SEAL) == _seal({k: v for k, v in record.items() if k != _SEAL})


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digests(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        return list(pool.map(sha256_of, files))
