"""The metadata file beside a reward cache: how the cache was sampled, and its checksum."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.cache.open_columns import source_digest
from training.outputs.identity import read_undamaged_record
from vbon.errors import DataError
from vbon.storage.cache_metadata import metadata_path

logger = logging.getLogger(__name__)


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


def check_made_with(cache: Path, wanted: Mapping[str, Any], stop_ids: Any) -> None:
    """Compare a cache's metadata with the settings of a run; a cache without metadata is trusted.

    Args:
        wanted: revisions and sampling settings of the run, by the names of the metadata.
        stop_ids: the policy's ``eos_token_ids``.

    Raises:
        DataError: names the setting that differs, or the content is not what ``sample`` wrote.
    """
    metadata = read_undamaged_record(metadata_path(cache)) or {}
    check_content(cache, metadata, source_digest(cache))
    recorded = metadata.get("identity")
    if recorded is None:
        logger.info("%s has no record of how it was sampled; assuming that it fits this run", cache)
        return
    compared = dict(wanted)
    # Caches of vLLM, which always stopped at all of the model's stop tokens, did not record them.
    if recorded.get("backend") != "vllm" or "eos_token_ids" in recorded:
        compared["eos_token_ids"] = stop_ids
    for key, value in compared.items():
        if recorded.get(key) != value:
            raise DataError(
                f"the cache {cache} was sampled with {key} {recorded.get(key)!r}, but this "
                f"run has {value!r}, so F would be estimated from other samples or rewards; sample "
                "again, or use the same settings"
            )
