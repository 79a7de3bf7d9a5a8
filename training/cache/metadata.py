"""The metadata file beside a reward cache: how the cache was sampled, and its checksum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vbon.errors import DataError


def metadata_path(cache: Path) -> Path:
    """The metadata file of a cache, finished or not."""
    return cache.with_name(cache.name + ".meta.json")


def check_content(cache: Path, metadata: dict[str, Any], digest: str) -> None:
    """Check that a cache is as ``sample`` wrote it.

    Args:
        digest: SHA-256 of the cache's current content, in hex.

    Raises:
        DataError: the content differs from what the metadata recorded.
    """
    if metadata.get("sha256", digest) != digest:
        name = metadata_path(cache).name
        raise DataError(
            f"{cache}: its content is not what {name} says (SHA-256 {digest[:16]}... instead of "
            f"{metadata['sha256'][:16]}...); restore it, or sample it again with --replace (if you changed "
            f"it on purpose and want to train on it, delete {name})"
        )
