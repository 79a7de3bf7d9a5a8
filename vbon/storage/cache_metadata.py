"""The name of the metadata file beside a reward cache, which says how the cache was made."""

from __future__ import annotations

from pathlib import Path


def metadata_path(cache: Path) -> Path:
    """The metadata file of a cache, finished or not."""
    return cache.with_name(cache.name + ".meta.json")
