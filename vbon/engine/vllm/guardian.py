"""A guard that ends engine processes if the process that started them is killed.

Without it they would keep their memory, or a GPU, forever.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence

_STOP_S = 5.0
# Waits until the pipe to the starting process says "done" or breaks. It imports nothing of this project, so
# it starts at once.
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
    """A small process that kills others when this process ends, for whatever reason.

    Args:
        pids: ids of the processes to kill; their children must end with them.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _GUARD, *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to our process group must not reach it
        )

    @property
    def on_watch(self) -> bool:
        """True while the guardian process runs; it can be killed like any other process."""
        return self._process.poll() is None

    def dismiss(self) -> None:
        """End the guardian without killing anything; safe to call twice."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(b"done")
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
