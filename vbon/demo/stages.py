"""Stages of the demo: what happens, what comes next, and about how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console

from vbon.terminal import duration


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage; ``expected_s`` is its time on two cores of a common server."""

    title: str
    expected_s: float


@dataclass(slots=True)
class Stages:
    """Announces stages in order, and learns from each how fast this machine is."""

    stages: tuple[Stage, ...]
    console: Console
    begun_s: float = field(default_factory=time.monotonic)
    _done: int = 0
    _expected_s: float = 0.0
    _spent_s: float = 0.0

    @contextmanager
    def next(self) -> Iterator[Stage]:
        """Announce the next stage, and time it."""
        stage = self.stages[self._done]
        self.console.print(self.announcement(), style="bold", highlight=False)
        begun = time.monotonic()
        yield stage
        seconds = time.monotonic() - begun
        self._done += 1
        # A stage that was kept from an earlier start tells nothing of the machine.
        if seconds > stage.expected_s / 5:
            self._expected_s += stage.expected_s
            self._spent_s += seconds
        self.console.print(f"      done in {seconds:.0f} s", style="dim", highlight=False)

    def announcement(self) -> str:
        """The current stage, the one after it, and the time left."""
        stage = self.stages[self._done]
        following = self.stages[self._done + 1 :]
        then = f"; next: {following[0].title}" if following else ""
        left = duration(self.left_s())
        return f"[{self._done + 1}/{len(self.stages)}] {stage.title} (about {left} left{then})"

    def left_s(self) -> float:
        """Estimated seconds until all stages are done, at the pace of the stages so far."""
        pace = self._spent_s / self._expected_s if self._expected_s else 1.0
        return pace * sum(stage.expected_s for stage in self.stages[self._done :])

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self.begun_s
