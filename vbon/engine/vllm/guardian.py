"""Ends engine processes whose starter was killed: they would hold their memory, or a GPU, for good."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence

_STOP_S = 5.0
# Reads until its starter says that all is in order, or is gone. No imports of ours: it is up at once.
_GUARD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
if sys.stdin.buffer.read() != b"done":
    for pid in sys.argv[1:]:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
"""


class Guardian:
    """A small process that ends others once this one is gone, however it went.

    Args:
        pids: of the processes to end; what they started must end with them.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _GUARD, *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends our process group must not end it first
        )

    @property
    def on_watch(self) -> bool:
        """Whether it is there; it may have been killed as well as any other process."""
        return self._process.poll() is None

    def dismiss(self) -> None:
        """The processes have ended, or may live; safe to call twice."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(b"done")
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
