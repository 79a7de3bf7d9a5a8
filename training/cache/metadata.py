"""The record beside a reward cache: what it was sampled with, and the check that it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vbon.errors import DataError


def meta_path(cache: Path) -> Path:
    """Where the settings and revisions of a cache, or of an unfinished one, are written."""
    return cache.with_name(cache.name + ".meta.json")


def check_content(cache: Path, meta: dict[str, Any], digest: str) -> None:
    """Refuse a cache that is not as ``sample`` wrote it.

    Raises:
        DataError: names it.
    """
    if meta.get("sha256", digest) != digest:
        raise DataError(
            f"{cache}: its content is not what {meta_path(cache).name} says (SHA-256 "
            f"{digest[:16]}..., {meta['sha256'][:16]}... was written); restore it, or sample it again "
            "with --replace (if you changed it yourself and want to train on it as it is, delete "
            f"{meta_path(cache).name})"
        )
