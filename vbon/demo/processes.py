"""Processes of the demo, each with its output in a log file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vbon.errors import VbonError

_TAIL_LINES = 20
_REPORT_EVERY_S = 30.0  # in a log file, which shows no status line


class DemoFailedError(VbonError):
    """A part of the demo failed; the message ends with what the part said last."""


@dataclass(frozen=True, slots=True)
class Part:
    """A running command of the project.

    Attributes:
        name: shown in messages; also the name of its log.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def last_line(self) -> str:
        """The last thing it said, progress bars included."""
        lines = self._text().replace("\r", "\n").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def failure(self) -> DemoFailedError:
        """The error to raise for a part that ended when or how it should not."""
        lines = [line for line in self._text().splitlines() if line.strip()]
        tail = "\n".join(lines[-_TAIL_LINES:])
        return DemoFailedError(
            f"{self.name} ended with status {self.process.returncode}; the end of {self.log}:\n{tail}"
        )

    def stop(self) -> None:
        """Ask it to end, and wait; kill it if it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _text(self) -> str:
        size = self.log.stat().st_size
        with self.log.open("rb") as handle:
            handle.seek(max(0, size - 20_000))
            return handle.read().decode("utf-8", "replace")


def start(
    name: str, directory: Path, *words: str, niceness: int = 0, threads: int | None = None
) -> Part:
    """Start ``python -m WORDS``, with its output in ``directory/NAME.log``.

    The process has a session of its own: Ctrl-C reaches the demo alone, which stops its parts in order.

    Args:
        threads: of mathematical libraries; ``None``: one for each core. Those of a process that shares the
            cores with a busy one wait for each other most of the time.
    """
    env = None if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{name}.log"
    with log.open("wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=env,
            preexec_fn=(lambda: os.nice(niceness)) if niceness else None,
        )
    return Part(name, process, log)


def wait(
    console: Console,
    parts: list[Part],
    done: Callable[[], bool],
    *,
    needs: list[Part] | None = None,
) -> None:
    """Wait until ``done``, showing what the first part says.

    Args:
        parts: must not fail while they are waited for, but may end with status 0.
        needs: must not end at all, such as the service.

    Raises:
        DemoFailedError: a part failed.
    """
    reported_s = time.monotonic()
    with console.status("") as status:
        while not done():
            for part in parts:
                if part.process.poll() not in (None, 0):
                    raise part.failure()
            for part in needs or []:
                if part.process.poll() is not None:
                    raise part.failure()
            line = parts[0].last_line() if parts else ""
            status.update(escape(line[:100]))
            if not console.is_terminal and time.monotonic() - reported_s > _REPORT_EVERY_S:
                console.print(f"      {parts[0].name}: {line[:100]}", style="dim", markup=False)
                reported_s = time.monotonic()
            time.sleep(0.2)


def ended(part: Part) -> bool:
    """True once a part has ended with status 0."""
    return part.process.poll() == 0
