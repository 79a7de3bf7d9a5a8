"""Opens the columns of a reward cache, and compiles them first if they are missing or outdated."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from training.cache.columns import INDEX, Columns, columns_path
from training.cache.jsonl import compile_progress, raw_lines, tokenised, tokenizer_fingerprint
from training.cache.write_columns import write_columns
from training.outputs.identity import read_json_record
from vbon.errors import DataError, ExportError
from vbon.storage.atomic import read_errors, replacing_directory, write_json
from vbon.storage.checksums import checksums_of, find_damage, is_sealed, sealed

logger = logging.getLogger(__name__)

VERSION = 2


def open_columns(
    path: Path, tokenizer: Any, max_new_tokens: int, vocab_size: int | None = None
) -> tuple[Columns, dict[str, Any]]:
    """The columns of a JSONL cache and their index.

    Args:
        vocab_size: the size of the policy's vocabulary; compiling fails on a token id beyond it.

    Raises:
        DataError: the file is missing, unreadable, empty or malformed; names the line.
        ExportError: the columns cannot be written.
    """
    directory = columns_path(path)
    wanted = {
        "version": VERSION,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "max_new_tokens": max_new_tokens,
    }
    if vocab_size is not None:
        wanted["vocab_size"] = vocab_size
    with read_errors(path):
        if not path.is_file():
            raise DataError(f"reward cache {path} does not exist; make it with `sample`")
        opened = path.open("rb")
    with opened as source:
        # If two runs share a cache, the second waits for the first. Some network file systems have no locks.
        with suppress(OSError):
            fcntl.flock(source, fcntl.LOCK_EX)
        found = _current(source, directory, wanted)
        if found is None:
            _compile(source, path, directory, wanted, tokenizer)
            found = Columns.load(directory), json.loads((directory / INDEX).read_text("utf-8"))
    return found


def _current(
    source: BufferedReader, directory: Path, wanted: dict[str, Any]
) -> tuple[Columns, dict[str, Any]] | None:
    """The existing columns and their index, if they are undamaged and were compiled from this file.

    Reads every column once, to verify its checksum.
    """
    index = _read_index(directory)
    if index is None or any(index.get(name) != value for name, value in wanted.items()):
        return None
    try:
        wrong = find_damage(directory, index["columns"])
        columns = None if wrong else Columns.load(directory)
    except (OSError, ValueError) as error:
        wrong, columns = str(error), None
    if columns is None:
        logger.warning("%s; compiling it again", wrong)
        return None
    stat = _stat(source)
    if stat != {name: index.get(name) for name in stat}:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
        source.seek(0)
        if digest != index.get("sha256"):
            return None
        index |= stat
        with suppress(ExportError):  # the new index only saves computing the digest next time
            _write_index(directory, index)
    return columns, index


def source_digest(path: Path) -> str:
    """The SHA-256 of a JSONL cache in hex; taken from its index if the file has not changed since.

    Raises:
        DataError: the file cannot be read.
    """
    index = _read_index(columns_path(path)) or {}
    with read_errors(path), path.open("rb") as source:
        stat = _stat(source)
        if "sha256" in index and stat == {name: index.get(name) for name in stat}:
            return str(index["sha256"])
        return hashlib.file_digest(source, "sha256").hexdigest()


def _read_index(directory: Path) -> dict[str, Any] | None:
    """The record of how the columns were compiled; ``None`` if it is missing or damaged."""
    index = read_json_record(directory / INDEX)
    return index if index is not None and is_sealed(index) else None


def _write_index(directory: Path, index: dict[str, Any]) -> None:
    write_json(directory / INDEX, sealed({k: v for k, v in index.items() if k != "seal"}))


def _stat(source: BufferedReader) -> dict[str, int]:
    """File attributes that change if the file is replaced or its content changes.

    The modification time alone is not enough: a clock may jump, and copying a file can keep its time.
    """
    stat = os.fstat(source.fileno())
    return {
        "source_bytes": stat.st_size,
        "source_mtime_ns": stat.st_mtime_ns,
        "source_ctime_ns": stat.st_ctime_ns,
        "source_inode": stat.st_ino,
    }


def _compile(
    source: BufferedReader, path: Path, directory: Path, wanted: dict[str, Any], tokenizer: Any
) -> None:
    stat = _stat(source)
    digest = hashlib.sha256()
    with (
        replacing_directory(directory) as partial,
        compile_progress(path.name, stat["source_bytes"]) as advance,
    ):
        raw = raw_lines(source, path, digest, advance)
        lines = tokenised(raw, tokenizer, wanted["max_new_tokens"], wanted.get("vocab_size"))
        write_columns(partial, lines)
        index = {**wanted, **stat, "sha256": digest.hexdigest(), "columns": checksums_of(partial)}
        _write_index(partial, index)
