"""The column format of a reward cache: ``.npy`` files beside the JSONL, compiled once and memory-mapped.

It has P prompts (rows) in the order in which they first appear, and S samples. The samples of a row are
consecutive, in the order of the file. Two lines belong to the same row if their prompts have the same token
ids. ``open_columns.py`` opens and compiles the columns, ``write_columns.py`` writes them.

pyarrow and datasets were measured as alternatives (docs/log.md). pyarrow takes the same time and memory, but
lines of one prompt that are far apart still have to be grouped by hand, in files, if the cache may be larger
than memory. datasets is many times slower at reading single rows, and names no line in its errors.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

INDEX = "index.json"
PROMPTS = "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Columns:
    """The arrays of a cache, one file each.

    Attributes:
        prompt_ids: int32, flat; row r is ``prompt_ids[prompt_offsets[r] : prompt_offsets[r + 1]]``.
        prompt_offsets: int64 (P+1,).
        text_offsets: int64 (P+1,), byte offsets of the rows in ``prompts``.
        keys: S16 (P,), :func:`key_of` every row, ascending.
        key_rows: int64 (P,), the row of each key.
        offsets: int64 (P+1,), the first sample of each row.
        rewards: float64 (S,), in the order of the file.
        sorted_rewards: float64 (S,), ascending within each row.
        distinct: int32 (P,), the number of different rewards in each row.
        has_responses: bool (P,), True if all samples of the row came with their response.
        response_ids: int32, flat, by ``response_offsets``.
        response_offsets: int64 (S+1,), or (1,) for a cache without responses.
        prompts: uint8, the bytes of ``prompts.jsonl``, one prompt per line.
    """

    prompt_ids: NDArray[np.int32]
    prompt_offsets: NDArray[np.int64]
    text_offsets: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    key_rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    rewards: NDArray[np.float64]
    sorted_rewards: NDArray[np.float64]
    distinct: NDArray[np.int32]
    has_responses: NDArray[np.bool_]
    response_ids: NDArray[np.int32]
    response_offsets: NDArray[np.int64]
    prompts: NDArray[np.uint8]

    @classmethod
    def load(cls, directory: Path, mmap_mode: Literal["r"] | None = "r") -> Columns:
        """Map the columns, or read them into memory with ``mmap_mode=None``.

        Raises:
            OSError, ValueError: a file is missing or truncated, or does not belong to the others.
        """
        # Converted to plain arrays, because slicing the subclass memmap takes several times as long.
        arrays: dict[str, Any] = {
            field.name: np.asarray(np.load(directory / f"{field.name}.npy", mmap_mode=mmap_mode))
            for field in fields(cls)
            if field.name != "prompts"
        }
        text = directory / PROMPTS
        prompts = np.memmap(text, np.uint8, mode="r") if mmap_mode else np.fromfile(text, np.uint8)
        columns = cls(**arrays, prompts=np.asarray(prompts))
        for offsets, flat in (
            (columns.prompt_offsets, columns.prompt_ids),
            (columns.text_offsets, columns.prompts),
            (columns.offsets, columns.rewards),
            (columns.offsets, columns.sorted_rewards),
            (columns.response_offsets, columns.response_ids),
        ):
            if offsets[-1] != len(flat):
                raise ValueError(f"the files in {directory} do not belong together")
        return columns


def key_of(ids: Sequence[int]) -> bytes:
    """A 16-byte hash of a prompt's token ids, for looking it up."""
    return hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=16).digest()


def create_column(path: Path, dtype: type[np.generic], length: int) -> NDArray[Any]:
    """Create a ``.npy`` file, mapped for writing.

    Raises:
        OSError: the disk is full. Space is reserved here, because writing to a mapped file on a full disk
            would kill the process with SIGBUS.
    """
    mapped = open_memmap(path, mode="w+", dtype=dtype, shape=(length,))  # type: ignore[no-untyped-call]
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return np.asarray(mapped)


def columns_path(cache: Path) -> Path:
    """The directory of a cache's columns."""
    return cache.with_name(cache.name + ".columns")
