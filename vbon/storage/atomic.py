"""Files written whole or not at all."""

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
    """Replace ``path`` with ``text`` in one step; a failure leaves the old file as it was.

    Raises:
        ExportError: on any failure of the file system, a full disk included.
    """
    partial = path.with_name(path.name + ".partial")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(path)
            _sync(path.parent)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """:func:`write_text` of indented JSON; refuses NaN, which is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def resolved(target: Path) -> Path:
    """Where an output really is, so that all names of one (a link, ``.``) are the same output."""
    return Path(os.path.realpath(target))


def beside(target: Path, ending: str) -> Path:
    """The hidden ``.NAME.ending`` next to an output, the same for all names of it."""
    place = resolved(target)
    return place.parent / f".{place.name}.{ending}"


def partial_path(target: Path) -> Path:
    """Where :func:`replacing_directory` makes a directory before it takes its place."""
    return beside(target, "partial")


@contextmanager
def replacing_directory(target: Path) -> Iterator[Path]:
    """Yield an empty sibling directory that takes ``target``'s place when the block succeeds.

    The old directory stays whole until the new one is complete and on disk, and stays for good if
    the block raises. A link stays a link: what it points to is replaced.

    Raises:
        ExportError: if the file system refuses (disk full, permission), naming what is still there.
    """
    partial = partial_path(target)
    try:
        recover_directory(target)
        # After recovering, which may put a link back in its place.
        place, partial, retired = resolved(target), partial_path(target), _retired_path(target)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        _sync(partial)
        if place.exists():
            place.replace(retired)
        partial.replace(place)
        _sync(place.parent)
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
    """Put back a directory that a kill between two renames left aside, and clear what else it left."""
    place, retired = resolved(target), _retired_path(target)
    _remove(partial_path(target))
    if retired.exists() and not place.exists():
        retired.replace(place)
    _remove(retired)


def is_storage_failure(error: BaseException) -> bool:
    """Whether an exception is the file system's, also as safetensors and torch wrap it."""
    wrapped = ("I/O error", "PytorchStreamWriter", "inline_container.cc", "iostream error")
    return isinstance(error, OSError) or any(words in str(error) for words in wrapped)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Failures of the file system as :class:`ExportError` that name the file and the remedy."""
    try:
        yield
    except OSError as error:
        said = error.strerror or error
        raise ExportError(f"could not write {path}: {said}; {REMEDY}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Failures of the file system as :class:`DataError` that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _retired_path(target: Path) -> Path:
    return beside(target, "retired")


def _remove(path: Path) -> None:
    """A directory, or the link to one that earlier versions set aside as if it were one."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Onto the disk: a file's content, or a directory's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
