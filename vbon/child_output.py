"""Standard output and error of child processes, which a full disk or a closed terminal cannot stop.

A process that prints to a full disk gets an error in the middle of whatever it does, for example while it
loads a model. Here it prints into a pipe, and a thread of this process copies that to where our own output
goes, or discards it where that fails.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_FDS = (1, 2)
_lock = threading.Lock()
_users = 0
_saved: dict[int, int] = {}


def ensure_standard_files() -> None:
    """Open what the caller of this program closed (``2>&-``), so that no other file gets its number."""
    for fd in (0, *_FDS):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


@contextmanager
def relayed_output() -> Iterator[None]:
    """Give processes that start while the block runs pipes for their output.

    This process prints into the same pipes meanwhile. Blocks may overlap in several threads.
    """
    global _users
    with _lock:
        if _users == 0:
            _divert()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _restore()


def _divert() -> None:
    ensure_standard_files()  # the pipes must not get the numbers of closed streams
    for fd in _FDS:
        opened: list[int] = []
        try:
            opened += os.pipe()
            opened += [os.dup(fd), os.dup(fd)]
        except OSError:  # too many open files: do without
            for one in opened:
                os.close(one)
            continue
        read_end, write_end, _saved[fd], target = opened
        os.dup2(write_end, fd)
        os.close(write_end)
        threading.Thread(
            target=_copy, args=(read_end, target), name=f"output-{fd}", daemon=True
        ).start()


def _restore() -> None:
    while _saved:
        fd, saved = _saved.popitem()
        os.dup2(saved, fd)
        os.close(saved)


def _copy(source: int, target: int) -> None:
    """Copy until every process has closed the pipe."""
    while content := os.read(source, 2**16):
        with suppress(OSError):
            while content:
                content = content[os.write(target, content) :]
    os.close(source)
    os.close(target)
