"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bestofn.errors import ExportError


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` with ``text`` in one step; a failure leaves the old file as it was.

    Raises:
        ExportError: on any failure of the file system, a full disk included.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ExportError(f"could not write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    """:func:`write_text` of indented JSON; refuses NaN, which is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def replacing_directory(target: Path) -> Iterator[Path]:
    """Yield an empty sibling directory that takes ``target``'s place when the block succeeds.

    The old directory stays whole until the new one is complete and on disk, and stays for good if
    the block raises.

    Raises:
        ExportError: if the file system refuses (disk full, permission), naming what is still there.
    """
    partial = target.with_name(f".{target.name}.partial")
    retired = target.with_name(f".{target.name}.retired")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        recover_directory(target)
        shutil.rmtree(retired, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if target.exists():
            target.replace(retired)
        partial.replace(target)
        _sync_directory(target.parent)
        shutil.rmtree(retired, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        recover_directory(target)
        if is_storage_failure(error):
            kept = f"; the previous {target} is untouched" if target.exists() else ""
            raise ExportError(f"could not write {target}: {error}{kept}") from error
        raise


def is_storage_failure(error: BaseException) -> bool:
    """Whether an exception is the file system's, also as safetensors wraps it (``I/O error``)."""
    return isinstance(error, OSError) or "I/O error" in str(error)


def recover_directory(target: Path) -> None:
    """Put back a directory that a kill between two renames left aside."""
    retired = target.with_name(f".{target.name}.retired")
    if retired.exists() and not target.exists():
        retired.replace(target)
