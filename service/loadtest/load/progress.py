"""Progress of a load test: a bar in a terminal, one line per block in a log file."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars

from service.loadtest.analysis.cell_results import throughput
from service.loadtest.analysis.intervals import quantiles
from service.loadtest.analysis.text import duration
from service.loadtest.observation import BlockRecord, Observation
from vbon.work_report import LOAD_TEST, report_work

_REFRESH_EVERY = 10  # requests; drawing takes client time, which would show in latencies


class TerminalProgress:
    """Progress in the terminal, shown while this context manager is open."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = ProgressBars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[now]}"),
            console=console,
            refresh_per_second=2,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("blocks", total=None, now="", left="")
        self._what = ""
        self._answered = self._failed = 0
        self._planned_s: float | None = None
        self._paused = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def planned(self, blocks: int, done: int, left_s: float | None) -> None:
        """Set the length of the bar, and say so if this continues an earlier run."""
        self._bar.update(self._task, total=blocks, completed=done)
        if done:
            self._console.print(f"continuing: {done} of {blocks} blocks were measured before")
        self._planned_s, self._paused = left_s, False
        if left_s:
            report_work(LOAD_TEST, 0.0, left_s, begins=True)
            self._console.print(f"{blocks - done} blocks take about {duration(left_s)}")

    def begin(self, what: str, seconds: float | None, left_s: float | None = None) -> None:
        """Show beside the bar what begins now, and how long all blocks will still take."""
        self._what = what if seconds is None else f"{what} ({seconds:.3g} s)"
        left = "" if left_s is None else f"about {duration(left_s)} left"
        self._bar.update(self._task, left=left)
        self._report(left_s)
        self._answered = self._failed = 0
        self._draw()

    def seen(self, observation: Observation) -> None:
        """Count the request as answered or failed."""
        self._answered += observation.error is None
        self._failed += observation.error is not None
        if (self._answered + self._failed) % _REFRESH_EVERY == 0:
            self._draw()

    def scored(self) -> None:
        """Count the scored answer."""
        self._answered += 1
        if self._answered % _REFRESH_EVERY == 0:
            self._draw()

    def finished(self, record: BlockRecord) -> None:
        """Advance the bar and print one line with the figures of the block."""
        self._bar.advance(self._task)
        good = [one.e2e_ms for one in record.measured if one.error is None]
        latency = quantiles(good)
        failed = len(record.measured) - len(good)
        found = "nothing was answered"
        if latency is not None:
            rate = throughput(record, lambda _: 1.0)
            found = f"{rate:.3g} requests/s, p50 {latency.p50:.0f} ms, p95 {latency.p95:.0f} ms"
        errors = f", {failed} failed" if failed else ""
        self._console.print(escape(f"{record.key}: {found}{errors}"), highlight=False)

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(escape(text), highlight=False)

    def _report(self, left_s: float | None) -> None:
        """Report the time of the blocks; anew after scoring or a probe, which are not in their pace."""
        if left_s is None or not self._planned_s:
            self._paused = True
            return
        if self._paused:
            self._planned_s = left_s
        done_s = self._planned_s - left_s
        report_work(LOAD_TEST, done_s, self._planned_s, begins=self._paused)
        self._paused = False

    def _draw(self) -> None:
        failed = f", {self._failed} failed" if self._failed else ""
        self._bar.update(self._task, now=escape(f"{self._what}: {self._answered} answered{failed}"))


class Progress(Protocol):
    """Receiver of a run's progress; its methods are called from the event loop and must be quick."""

    def planned(self, blocks: int, done: int, left_s: float | None) -> None:
        """Receive the number of blocks, how many an earlier run has finished, and the time of the others."""

    def begin(self, what: str, seconds: float | None, left_s: float | None = None) -> None:
        """Receive the name of the next step, its expected duration, and that of all blocks still to come."""

    def seen(self, observation: Observation) -> None:
        """Receive a request that has ended."""

    def scored(self) -> None:
        """Receive the news that an answer was scored."""

    def finished(self, record: BlockRecord) -> None:
        """Receive a finished block."""

    def note(self, text: str) -> None:
        """Receive a message to show."""
