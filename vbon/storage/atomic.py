"""Writes files and directories completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vbon.errors import DataError, ExportError

REMEDY = "free some space there, or permit writing, and run the same command again"


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` in one step; a failure leaves the old file untouched.

    Raises:
        ExportError: the file system reported an error, such as a full disk.
    """
    partial = path.with_name(path.name + ".partial")
    with write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(path)
            sync_to_disk(path.parent)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with :func:`write_text`; NaN is rejected because JSON has no NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def resolved(target: Path) -> Path:
    """The real path of an output, so that all its names (a link, ``.``) mean the same output."""
    return Path(os.path.realpath(target))


def beside(target: Path, ending: str) -> Path:
    """The hidden path ``.NAME.ending`` next to an output; all names of the output give the same."""
    place = resolved(target)
    return place.parent / f".{place.name}.{ending}"


def partial_path(target: Path) -> Path:
    """The path under which :func:`replacing_directory` builds a directory before renaming it."""
    return beside(target, "partial")


@contextmanager
def replacing_directory(target: Path) -> Iterator[Path]:
    """Yield an empty sibling directory that replaces ``target`` when the block succeeds.

    The old directory stays until the new one is complete and on disk; if the block raises, it is kept.
    If ``target`` is a link, it stays a link and the directory it points to is replaced.

    Raises:
        ExportError: the file system reported an error (disk full, permission); the message says whether
            the previous directory is untouched.
    """
    partial = partial_path(target)
    try:
        recover_directory(target)
        # Resolved only now: recovering may have put a link back.
        place, partial, retired = resolved(target), partial_path(target), _retired_path(target)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            sync_to_disk(file)
        sync_to_disk(partial)
        if place.exists():
            place.replace(retired)
        partial.replace(place)
        sync_to_disk(place.parent)
        _remove(retired)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        recover_directory(target)
        if is_storage_failure(error):
            kept = f"; the previous {target} is untouched" if target.exists() else ""
            said = error if isinstance(error, OSError) else f"is the disk full? ({error})"
            raise ExportError(f"could not write {target}: {said}{kept}; {REMEDY}") from error
        raise


def recover_directory(target: Path) -> None:
    """Restore a directory that a kill between two renames left aside, and remove other leftovers."""
    place, retired = resolved(target), _retired_path(target)
    _remove(partial_path(target))
    if retired.exists() and not place.exists():
        retired.replace(place)
    _remove(retired)


def is_storage_failure(error: BaseException) -> bool:
    """Tell whether the file system caused an exception, also one wrapped by safetensors or torch."""
    wrapped = ("I/O error", "PytorchStreamWriter", "inline_container.cc", "iostream error")
    return isinstance(error, OSError) or any(words in str(error) for words in wrapped)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn ``OSError`` into an :class:`ExportError` that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        said = error.strerror or error
        raise ExportError(f"could not write {path}: {said}; {REMEDY}") from error


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn ``OSError`` into a :class:`DataError` that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _retired_path(target: Path) -> Path:
    return beside(target, "retired")


def _remove(path: Path) -> None:
    """Remove a directory, or a link: earlier versions set a link aside like a directory."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def sync_to_disk(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
