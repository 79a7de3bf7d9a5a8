"""One writer an output: a second one is told, instead of both writing the same files."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vbon.errors import ExportError
from vbon.storage.atomic import beside, storage_errors

# How long a second writer waits: children of a killed one may take a moment to follow it.
PATIENCE_S = 5.0
_NOT_OURS_TO_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def sole_writer(target: Path) -> Iterator[None]:
    """Hold ``target`` against other processes that would write it; a killed one lets go.

    Where the file system knows no locks, or may not be written, nothing is held.

    Raises:
        ExportError: another process holds it, or the disk is full.
    """
    path = beside(target, "lock")
    handle = _locked(path, target)
    try:
        yield
    finally:
        if handle is not None:
            # Removed while held: who waits for it sees that the file is another, or gone.
            path.unlink(missing_ok=True)
            os.close(handle)


def _locked(path: Path, target: Path) -> int | None:
    """A descriptor that holds the lock, ``None`` where there can be none."""
    deadline = time.monotonic() + PATIENCE_S
    while (handle := _opened(path)) is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            if time.monotonic() > deadline:
                raise ExportError(
                    f"{target} is being written by another process ({holder}); wait for it to end, "
                    "or choose another --out"
                ) from None
            time.sleep(0.05)
            continue
        except OSError:
            os.close(handle)
            return None  # some network file systems know no locks
        if _is_still(path, handle):
            with suppress(OSError):  # only for the message to who comes second
                os.truncate(handle, 0)
                os.pwrite(handle, f"pid {os.getpid()}\n".encode(), 0)
            return handle
        os.close(handle)
    return None


def _opened(path: Path) -> int | None:
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except ExportError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NOT_OURS_TO_WRITE:
            return None  # writing says so itself, if anything has to be written
        raise


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
