"""Standard output and error of child processes, which a full disk or a closed terminal cannot stop.

A process that prints to a full disk gets an error in the middle of whatever it does, for example while it
loads a model. Here it prints into a pipe, and a thread of this process copies that to where our own output
goes, or discards it where that fails. All children share one pipe per stream, so restarts of them add neither
threads nor descriptors.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_FDS = (1, 2)
_FLUSH_S = 0.5  # children that outlive this process may hold a pipe open


@dataclass(frozen=True, slots=True)
class _Relay:
    """A pipe with the thread that copies it to ``target``, the file that the stream was then."""

    write_end: int
    target: os.stat_result
    thread: threading.Thread


_lock = threading.Lock()
_users = 0
_saved: dict[int, int] = {}
_relays: dict[int, _Relay] = {}


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
        try:
            saved = os.dup(fd)
        except OSError:  # too many open files: do without
            continue
        relay = _relay_of(fd)
        if relay is None:
            os.close(saved)
            continue
        _saved[fd] = saved
        os.dup2(relay.write_end, fd)


def _relay_of(fd: int) -> _Relay | None:
    """The relay to where the stream goes now, or None if there are too many open files for one."""
    now = os.fstat(fd)
    relay = _relays.get(fd)
    if relay is not None:
        if os.path.samestat(relay.target, now):
            return relay
        os.close(_relays.pop(fd).write_end)  # the stream has been redirected since
    opened: list[int] = []
    try:
        opened += os.pipe()
        opened.append(os.dup(fd))
    except OSError:
        for one in opened:
            os.close(one)
        return None
    read_end, write_end, target = opened
    thread = threading.Thread(
        target=_copy, args=(read_end, target), name=f"output-{fd}", daemon=True
    )
    thread.start()
    _relays[fd] = _Relay(write_end, now, thread)
    return _relays[fd]


def _restore() -> None:
    while _saved:
        fd, saved = _saved.popitem()
        os.dup2(saved, fd)
        os.close(saved)


@atexit.register
def _flush() -> None:
    """Let the last output of children that have ended arrive."""
    with _lock:
        relays = [_relays.popitem()[1] for _ in range(len(_relays))]
    for relay in relays:
        os.close(relay.write_end)
    for relay in relays:
        relay.thread.join(_FLUSH_S)


def _copy(source: int, target: int) -> None:
    """Copy until every process has closed the pipe."""
    while content := os.read(source, 2**16):
        with suppress(OSError):
            while content:
                content = content[os.write(target, content) :]
    os.close(source)
    os.close(target)
