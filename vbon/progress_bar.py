"""Progress bars on a terminal; plain lines when the output goes elsewhere."""

from __future__ import annotations

import os
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 15.0


class ProgressBar:
    """A progress bar followed by a short text of facts; in a log file, one line every 15 seconds."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._title, self._total, self._done = title, total, done
        # Of several processes (torchrun), only the first reports.
        self._console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, facts="")
        self._last_line_s = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, steps: int = 1, facts: str = "") -> None:
        """Advance the bar by ``steps`` and show ``facts`` beside it."""
        self._done += steps
        self._bar.update(self._task, advance=steps, facts=facts)
        now = time.monotonic()
        if self._bar.disable and (
            now - self._last_line_s > LINE_EVERY_S or self._done == self._total
        ):
            self._last_line_s = now
            self._console.print(
                f"{self._title}: {self._done}/{self._total} {facts}", highlight=False
            )
