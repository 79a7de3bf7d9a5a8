"""Support for load tests started by another program: reports progress to it, and ends when it ends."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from service.loadtest.analysis.intervals import quantiles
from service.loadtest.journal import Journal
from service.loadtest.load.progress import Progress
from service.loadtest.observation import BlockRecord, Observation
from service.loadtest.schema import LoadTestResult

_TELL_S = 1.0
_WINDOW_S = 5.0  # of the figures of a running block
PROGRESS, RESULT = "progress.json", "result.json"


class RunningBlock:
    """Throughput and latency of the block that is being measured, over its last seconds."""

    def __init__(self) -> None:
        self._begun_s = self._told_s = perf_counter()
        self._answers: deque[tuple[float, float]] = deque()  # when, and E2E in ms
        self._failed = 0

    def add(self, observation: Observation) -> bool:
        """Count a request that has ended; return True once a second, when it is time to tell."""
        now = perf_counter()
        if observation.error is None:
            self._answers.append((now, observation.e2e_ms))
        else:
            self._failed += 1
        self._drop_old(now)
        if now - self._told_s < _TELL_S:
            return False
        self._told_s = now
        return True

    def state(self) -> dict[str, float | None] | None:
        """The figures as the progress file has them; ``None`` before the first request has ended."""
        if not self._answers and not self._failed:
            return None
        now = perf_counter()
        self._drop_old(now)
        latency = quantiles([e2e_ms for _, e2e_ms in self._answers])
        return {
            "answers_per_s": len(self._answers) / min(_WINDOW_S, max(now - self._begun_s, 1e-3)),
            "p95_ms": None if latency is None else latency.p95,
            "failed": self._failed,
        }

    def _drop_old(self, now: float) -> None:
        while self._answers and self._answers[0][0] < now - _WINDOW_S:
            self._answers.popleft()


class Reporting:
    """Progress that is passed on and also written, with the result so far, into the run's directory.

    The result is written before a block begins and never during one, because building it takes client time,
    which would show in latencies. The progress is also written once a second while a block runs, which takes
    a tenth of a millisecond. Neither is synced to the disk: the journal is, and both can be rebuilt from it.
    """

    def __init__(
        self, inner: Progress, journal: Journal, result_so_far: Callable[[], LoadTestResult]
    ) -> None:
        self._inner, self._journal, self._result_so_far = inner, journal, result_so_far
        self._planned: int | None = None
        self._done = 0
        self._left_s: float | None = None
        self._lines = 0
        self._what: tuple[str | None, float | None] = (None, None)
        self._block = RunningBlock()

    def planned(self, blocks: int, done: int, left_s: float | None) -> None:
        """Record the number of blocks and the time that they will take, and pass both on."""
        self._planned, self._done, self._left_s = blocks, done, left_s
        self._inner.planned(blocks, done, left_s)

    def begin(self, what: str, seconds: float | None, left_s: float | None = None) -> None:
        """Write the result so far and the name of the next step, and pass the step on."""
        lines = len(self._journal.lines)
        if lines > self._lines and self._done:
            self._write(RESULT, self._result_so_far().model_dump_json())
        self._lines = lines
        self._left_s = left_s if left_s is not None else self._left_s
        self._what, self._block = (what, seconds), RunningBlock()
        self._tell()
        self._inner.begin(what, seconds, left_s)

    def seen(self, observation: Observation) -> None:
        """Count the request, write the progress once a second, and pass the request on."""
        if self._block.add(observation):
            self._tell()
        self._inner.seen(observation)

    def scored(self) -> None:
        """Pass the news on."""
        self._inner.scored()

    def finished(self, record: BlockRecord) -> None:
        """Count the block and pass it on."""
        self._done += 1
        self._what, self._block = (None, None), RunningBlock()
        self._tell()
        self._inner.finished(record)

    def note(self, text: str) -> None:
        """Pass the message on."""
        self._inner.note(text)

    def _tell(self) -> None:
        what, seconds = self._what
        status = {
            "blocks_planned": self._planned,
            "blocks_done": self._done,
            "now": what,
            "now_s": seconds,
            "left_s": self._left_s,
            "block": self._block.state(),
        }
        self._write(PROGRESS, json.dumps(status))

    def _write(self, name: str, text: str) -> None:
        path = self._journal.directory / name
        partial = path.with_name(f"{name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


@contextmanager
def interrupted_at_end_of(descriptor: int) -> Iterator[None]:
    """Interrupt the body of the ``with`` statement, like Ctrl-C, when a pipe ends.

    The pipe's writer is the program that started this one. The pipe ends however that program ends, even by
    ``kill -9``, so no load test is left running. The reports written after the body are not interrupted.
    Works only in the main thread.
    """
    # A background process of a shell script ignores SIGINT, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    over = threading.Event()

    def watch() -> None:
        # A buffered reader would hold its lock in this thread while the interpreter shuts down.
        while os.read(descriptor, 4096):
            pass
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, name="supervised", daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt while the block runs, as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, so the caller handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
