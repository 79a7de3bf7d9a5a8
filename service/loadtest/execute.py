"""Runs a whole load test, from settings to reports."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from service.loadtest.analysis.result import build_result
from service.loadtest.config import LoadTestSettings
from service.loadtest.defaults import settled
from service.loadtest.journal import Journal
from service.loadtest.load.load_test import LoadTest
from service.loadtest.load.progress import Progress
from service.loadtest.load.prompts import keep_prompts, load_prompts, served_prompts
from service.loadtest.load.server_description import (
    choose_variants,
    describe_server,
    evaluated_prompts,
)
from service.loadtest.load.supervised import (
    Reporting,
    interrupted_at_end_of,
    sigterm_as_ctrl_c,
)
from service.loadtest.plan import Variant
from service.loadtest.report.write import write_report
from service.loadtest.schema import LoadTestResult, ServerDescription
from vbon.errors import DataError


def execute(
    settings: LoadTestSettings, progress: Progress, console: Console
) -> tuple[LoadTestResult, bool]:
    """Measure, write the reports and add the run to the store.

    Ctrl-C or SIGTERM stops the measuring, and the finished blocks are reported; a second one ends the program
    at once. In a supervised run, the end of standard input acts like Ctrl-C.

    Returns:
        The result, and True if the run was interrupted.

    Raises:
        ServerError: the server cannot be measured.
        DataError: the prompts are missing, ``out`` holds another run, or no block was finished.
        InvalidInputError: the server does not have a requested mode.
        ExportError, StoreError: results could not be written; the journal holds what was measured.
    """

    def say(words: str) -> None:
        console.print(words, highlight=False, markup=False)

    # The prompts come first: a file that cannot be read should not wait for the server.
    prompts = load_prompts(settings, say)
    server = describe_server(settings, console)
    served = served_prompts(settings, evaluated_prompts, say)
    prompts = prompts if served is None else served
    variants = choose_variants(settings, server)
    settings = settled(settings, server, variants)
    journal = Journal.begin(settings, server.model_dump(mode="json"))
    keep_prompts(settings, prompts, served=served is not None)

    def result_so_far() -> LoadTestResult:
        return build_result(settings, server, variants, prompts, journal)

    until_stdin_ends: AbstractContextManager[None] = nullcontext()
    if settings.supervised:
        progress = Reporting(progress, journal, result_so_far)
        until_stdin_ends = interrupted_at_end_of(sys.stdin.fileno())
    test = LoadTest(settings, variants, prompts, journal, progress, server)
    interrupted = False
    try:
        with (
            sigterm_as_ctrl_c(),
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
    """Add the run to the store, unless the settings have none."""
    if settings.store is None:
        return
    from service.store import add_run, open_store

    store = open_store(settings.store)
    try:
        add_run(store, result.model_dump(mode="json"), settings.tag)
    finally:
        store.close()


def rebuild(directory: Path) -> tuple[LoadTestSettings, LoadTestResult]:
    """Settings and result of a run, rebuilt from the journal in its directory; works for killed runs too.

    Raises:
        DataError: the directory does not hold a load test.
    """
    journal, plan = Journal.reopen(directory)
    settings = LoadTestSettings(**{**_with_given_levels(plan["settings"]), "out": directory})
    server = ServerDescription.model_validate(plan["server"])
    variants: list[Variant] = choose_variants(settings, server)
    return settings, build_result(settings, server, variants, load_prompts(settings), journal)


def _with_given_levels(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a plan; those of earlier versions, which calibrated nothing, had default levels."""
    chosen = any(settings.get(name) for name in ("concurrency", "rate", "saturate"))
    return settings if chosen or "max_s" in settings else {**settings, "concurrency": [1, 8, 32]}


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop if it is installed: it leaves more of a shared machine to the server."""
    with suppress(ImportError):
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return factory
    return None
