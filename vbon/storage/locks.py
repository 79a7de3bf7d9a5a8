"""Allows one writer per output; a second one gets an error instead of mixing its files in."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vbon.errors import ExportError
from vbon.storage.atomic import beside, write_errors

if TYPE_CHECKING:
    from filelock import BaseFileLock

# How long a second writer waits. Child processes of a killed writer may hold its lock for a moment.
PATIENCE_S = 5.0
_POLL_S = 0.05
_REMEDY = "wait for it to end, or choose another --out"
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_LOCKS_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def sole_writer(target: Path, *, remedy: str = _REMEDY) -> Iterator[None]:
    """Hold the lock of ``target`` while the block runs; the system releases it if the process dies.

    The block runs without a lock where the file system supports no locks, and where it cannot be written:
    there, the block's own writes report the error, if it writes at all.

    Args:
        remedy: what the message tells a second writer to do.

    Raises:
        ExportError: another process holds the lock, or the lock file cannot be written (full disk).
    """
    path = beside(target, "lock")
    lock = _acquired(path, target, remedy)
    if lock is None:
        yield
        return
    with suppress(OSError):  # the process id serves only the message for a second writer
        path.write_text(f"pid {os.getpid()}\n", encoding="ascii")
    try:
        yield
    finally:
        # Removed while locked: a waiting process notices that it locked a removed file, and tries again.
        path.unlink(missing_ok=True)
        lock.release()


def _acquired(path: Path, target: Path, remedy: str) -> BaseFileLock | None:
    """The acquired lock, or ``None`` where locking is impossible."""
    from filelock import FileLock, Timeout

    lock = FileLock(
        path,
        timeout=PATIENCE_S,
        poll_interval=_POLL_S,
        thread_local=False,
        fallback_to_soft=False,  # a lock that is only a file would outlive a killed process
    )
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except ExportError as error:
        cause = error.__cause__
        if isinstance(cause, Timeout):
            raise ExportError(
                f"{target} is being written by another process ({_holder(path)}); {remedy}"
            ) from None
        if isinstance(cause, OSError) and cause.errno in _READ_ONLY | _LOCKS_UNSUPPORTED:
            return None
        raise
    return lock


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace").strip() or "unknown"
    return "unknown"
