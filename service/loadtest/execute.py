"""A whole run from settings to reports, for the command line and for others that start one."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from service.loadtest.analysis.result import build_result
from service.loadtest.config import LoadTestSettings
from service.loadtest.journal import Journal
from service.loadtest.load.load_test import LoadTest
from service.loadtest.load.progress import Progress
from service.loadtest.load.prompts import load_prompts
from service.loadtest.load.server_description import choose_variants, describe_server
from service.loadtest.load.supervised import Reporting, interrupted_at_end_of
from service.loadtest.plan import Variant
from service.loadtest.report.write import write_report
from service.loadtest.schema import LoadTestResult, ServerDescription
from vbon.errors import DataError


def execute(
    settings: LoadTestSettings, progress: Progress, console: Console
) -> tuple[LoadTestResult, bool]:
    """Measure, write the reports, keep the run in the store; whether it was interrupted.

    Ctrl-C and SIGTERM end the measuring; what was finished by then is reported. A second one ends at once.
    So does the end of standard input where it is supervised.

    Raises:
        ServerError: the server cannot be measured.
        DataError: no prompts, or ``out`` holds another run, or nothing was finished.
        InvalidInputError: the server has no such mode.
        ExportError, StoreError: results could not be written; the journal has what was measured.
    """
    prompts = load_prompts(settings)
    server = describe_server(settings, console)
    variants = choose_variants(settings, server)
    journal = Journal.begin(settings, server.model_dump(mode="json"))

    def result_so_far() -> LoadTestResult:
        return build_result(settings, server, variants, prompts, journal)

    until_stdin_ends: AbstractContextManager[None] = nullcontext()
    if settings.supervised:
        progress = Reporting(progress, journal, result_so_far)
        until_stdin_ends = interrupted_at_end_of(sys.stdin.fileno())
    test = LoadTest(settings, variants, prompts, journal, progress)
    interrupted = False
    try:
        with (
            _sigterm_as_ctrl_c(),
            until_stdin_ends,
            asyncio.Runner(loop_factory=_loop_factory()) as runner,
        ):
            runner.run(test.run())
    except KeyboardInterrupt:
        interrupted = True
    if not journal.of_kind("block") and not journal.of_kind("probe"):
        raise DataError("no block was finished, so there is nothing to report")
    result = result_so_far()
    write_report(result, settings.out)
    keep(settings, result)
    return result, interrupted


def keep(settings: LoadTestSettings, result: LoadTestResult) -> None:
    """Put the run into the store, if there is to be one."""
    if settings.store is None:
        return
    from service.store import add_run, open_store

    store = open_store(settings.store)
    try:
        add_run(store, result.model_dump(mode="json"), settings.tag)
    finally:
        store.close()


def rebuild(directory: Path) -> tuple[LoadTestSettings, LoadTestResult]:
    """The result of a run's directory, from its journal; for a run that was killed.

    Raises:
        DataError: it holds none.
    """
    journal, plan = Journal.reopen(directory)
    settings = LoadTestSettings(**{**plan["settings"], "out": directory})
    server = ServerDescription.model_validate(plan["server"])
    variants: list[Variant] = choose_variants(settings, server)
    return settings, build_result(settings, server, variants, load_prompts(settings), journal)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: what the client does not use, the server has."""
    with suppress(ImportError):
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return factory
    return None


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def interrupt(number: int, frame: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: who started us sees to signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
