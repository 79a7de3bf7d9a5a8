"""What a program that started a load test sees of it while it runs, and how it ends with that program."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.loadtest.journal import Journal
from service.loadtest.load.progress import Progress
from service.loadtest.observation import BlockRecord, Observation
from service.loadtest.schema import LoadTestResult

PROGRESS, RESULT = "progress.json", "result.json"


class Reporting:
    """Passes progress on, and writes it and the result so far into the run's directory.

    It writes before a block begins, never during one: making a result takes the client time that latencies
    would show. Nothing is synced to the disk, since the journal is, and both files can be made from it.
    """

    def __init__(
        self, inner: Progress, journal: Journal, result_so_far: Callable[[], LoadTestResult]
    ) -> None:
        self._inner, self._journal, self._result_so_far = inner, journal, result_so_far
        self._planned = self._done = 0
        self._lines = 0

    def planned(self, blocks: int, done: int) -> None:
        """Note it."""
        self._planned, self._done = blocks, done
        self._inner.planned(blocks, done)

    def begin(self, what: str, seconds: float | None) -> None:
        """Write what has been measured by now, and what comes."""
        lines = len(self._journal.lines)
        if lines > self._lines and self._done:
            self._write(RESULT, self._result_so_far().model_dump_json())
        self._lines = lines
        self._tell(what, seconds)
        self._inner.begin(what, seconds)

    def seen(self, observation: Observation) -> None:
        """Pass it on."""
        self._inner.seen(observation)

    def scored(self) -> None:
        """Pass it on."""
        self._inner.scored()

    def finished(self, record: BlockRecord) -> None:
        """Count it."""
        self._done += 1
        self._tell(None, None)
        self._inner.finished(record)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._inner.note(text)

    def _tell(self, what: str | None, seconds: float | None) -> None:
        told = {
            "blocks_planned": self._planned,
            "blocks_done": self._done,
            "now": what,
            "now_s": seconds,
        }
        self._write(PROGRESS, json.dumps(told))

    def _write(self, name: str, text: str) -> None:
        path = self._journal.directory / name
        partial = path.with_name(f"{name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


@contextmanager
def interrupted_at_end_of(descriptor: int) -> Iterator[None]:
    """Interrupt the block when a pipe ends: its writer, the program that started us, is done or gone.

    It ends however that program does, ``kill -9`` included, so nothing is left behind. What follows the
    block, the reports, is not interrupted. Main thread only.
    """
    # Whoever runs in the background of a script has inherited to ignore it, and we from them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    over = threading.Event()

    def watch() -> None:
        # Not through a buffered reader, whose lock this thread would hold while the interpreter ends.
        while os.read(descriptor, 4096):
            pass
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, name="supervised", daemon=True).start()
    try:
        yield
    finally:
        over.set()
