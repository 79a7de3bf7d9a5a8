"""Progress bars on a terminal; plain lines when the output goes elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
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

from vbon.work_report import foresee_work, report_work

LINE_EVERY_S = 15.0


class ProgressBar:
    """A progress bar followed by a short text of facts; in a log file, one line every 15 seconds.

    A program that runs this one learns of the progress too (:mod:`vbon.work_report`).
    """

    def __init__(
        self, title: str, total: int, done: int = 0, work: str | Mapping[str, int] = ""
    ) -> None:
        """Make a bar.

        Args:
            work: kind of the work in reports, if that is not the title; or kinds that follow each other,
                with their parts of the total, where a unit does not cost the same throughout.
        """
        self._title, self._total, self._done = title, total, done
        self._parts = {work or title: total} if isinstance(work, str) else work
        self._begun, self._ended = set[str](), set[str]()
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
        self._report()
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
        self._report()
        self._bar.update(self._task, advance=steps, facts=facts)
        now = time.monotonic()
        if self._bar.disable and (
            now - self._last_line_s > LINE_EVERY_S or self._done == self._total
        ):
            self._last_line_s = now
            self._console.print(
                f"{self._title}: {self._done}/{self._total} {facts}", highlight=False
            )

    def begin_again(self) -> None:
        """Report that a part of the work begins only now, so that other work before it is not in its pace."""
        self._begun &= self._ended
        self._report()

    def _report(self) -> None:
        before, begins = 0, not self._begun
        for kind, total in self._parts.items():
            done, before = self._done - before, before + total
            if total == 0 or kind in self._ended:
                continue
            if done < 0:
                if begins:
                    foresee_work(kind, total)
                continue
            report_work(kind, min(done, total), total, begins=kind not in self._begun)
            self._begun.add(kind)
            if done >= total:
                self._ended.add(kind)
