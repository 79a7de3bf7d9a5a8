"""Reports of a loop to its service: the step that it is at, and about how long it will take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vbon.distil.loop.service import Service
from vbon.distil.progress import STOPPED, LoopProgress

EVERY_S = 30.0  # between two reports of a step that takes long
_PATIENCE = 4  # so many reports may be missed before the last one is stale


class Reporter:
    """Tells a service where the loop is. Without a service, it does nothing; it raises nothing."""

    def __init__(
        self, service: Service | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._service, self._clock = service, clock
        self._told_s = -EVERY_S

    def waits(
        self, name: str, done: int, wanted: int, left_s: float | None, pause_s: float
    ) -> None:
        """Tell that a round waits for prompts, at most every 30 s.

        Args:
            pause_s: until the loop looks again.
        """
        now_s = self._clock()
        if now_s - self._told_s < EVERY_S and done < wanted:
            return
        self._told_s = now_s
        self._tell(
            LoopProgress(
                round=name,
                phase="collect",
                done=min(done, wanted),
                of=wanted,
                left_s=None if left_s is None else max(0.0, left_s),
                next_within_s=min(86_400.0, _PATIENCE * max(EVERY_S, pause_s)),
            )
        )

    @contextmanager
    def during(self, name: str, step: str, expected_s: float | None) -> Iterator[None]:
        """Tell the step at its beginning, and again and again until it ends."""
        if self._service is None:
            yield
            return
        begun_s, ended = self._clock(), threading.Event()

        def tell() -> None:
            left_s = None if expected_s is None else begun_s + expected_s - self._clock()
            self._tell(
                LoopProgress(
                    round=name,
                    phase=step,
                    left_s=None if left_s is None else max(0.0, left_s),
                    next_within_s=_PATIENCE * EVERY_S,
                )
            )

        def repeat() -> None:
            tell()
            while not ended.wait(EVERY_S):
                tell()

        thread = threading.Thread(target=repeat, name="report-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def stopped(self, name: str) -> None:
        """Tell that the loop has ended, so that nobody waits for its next report."""
        self._tell(LoopProgress(round=name, phase=STOPPED))

    def _tell(self, progress: LoopProgress) -> None:
        if self._service is not None:
            self._service.report(progress)
