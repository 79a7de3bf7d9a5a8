"""Measure a running server's modes against each other; compare and keep runs."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vbon.cli.errors import errors_as_lines
from vbon.cli.settings_command import add_settings_command
from vbon.cli.typer_help import HelpCommand, group_type
from vbon.config import Settings

if TYPE_CHECKING:
    from service.loadtest.config import LoadTestSettings
    from service.loadtest.schema import LoadTestResult

WORSE, INTERRUPTED = 3, 130
EPILOG = (
    "Exit status: 0 if everything was measured, 1 if it could not be, 2 after wrong usage, 3 if compare "
    "--fail-if-worse found B worse, 130 after Ctrl-C (the blocks measured until then are reported)."
)

cli = typer.Typer(cls=group_type(default="run"), add_completion=False, epilog=EPILOG)
StoreOption = Annotated[str, typer.Option(help="SQLite file or database URL that keeps the runs")]
STORE = "vbon-runs.db"


@cli.callback()
def _loadtest() -> None:
    """Measure the modes of a running server against each other; keep and compare runs.

    Without a command, `run` runs.
    """


def _settings() -> type[Settings]:
    from service.loadtest.config import LoadTestSettings

    return LoadTestSettings


def _run(settings: LoadTestSettings) -> int:
    logging.basicConfig(level="WARNING", format="%(levelname)s %(message)s")
    from service.loadtest.execute import execute
    from service.loadtest.load.progress import TerminalProgress
    from service.loadtest.report.terminal import print_result
    from vbon.terminal import table_console

    console = table_console()
    with TerminalProgress(console) as progress:
        result, interrupted = execute(settings, progress, console)
    print_result(console, result)
    console.print(f"report: {settings.out / 'report.html'} (run {result.id})", highlight=False)
    return INTERRUPTED if interrupted else 0


add_settings_command(
    cli,
    "run",
    "Measure modes at several load levels (the default command); the same --out continues a run.",
    _settings,
    _run,
)


@cli.command(cls=HelpCommand)
def report(
    directory: Annotated[Path, typer.Argument(help="the --out directory of a run")],
) -> None:
    """Write the reports of a run again from its journal, even of a run that was killed."""
    from service.loadtest.execute import rebuild
    from service.loadtest.report.terminal import print_result
    from service.loadtest.report.write import write_report
    from vbon.terminal import table_console

    with errors_as_lines():
        _, result = rebuild(directory)
        write_report(result, directory)
        print_result(table_console(), result)


@cli.command(cls=HelpCommand)
def compare(
    a: Annotated[str, typer.Argument(help="result.json, its directory, or a run in the store")],
    b: Annotated[
        str, typer.Argument(help="the run that is called better or worse than A, in the same forms")
    ],
    store: StoreOption = STORE,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="file for the comparison")
    ] = None,
    fail_if_worse: Annotated[bool, typer.Option(help="exit with status 3 if B is worse")] = False,
) -> None:
    """Tell whether two runs differ by more than their own rounds do.

    Needs 5 rounds in each, or 4 without rewards.
    """
    from service.loadtest.analysis.compare import compare_runs
    from service.loadtest.report.terminal import print_comparison
    from vbon.storage.atomic import write_json
    from vbon.terminal import table_console

    with errors_as_lines():
        found = compare_runs(_load(a, store), _load(b, store))
        print_comparison(table_console(), found)
        if json_file is not None:
            write_json(json_file, found.model_dump(mode="json"))
    if fail_if_worse and found.worse:
        raise typer.Exit(WORSE)


@cli.command(cls=HelpCommand)
def table(
    run: Annotated[str, typer.Argument(help="result.json, its directory, or a run in the store")],
    out: Annotated[Path, typer.Option(help="file for the table")],
    store: StoreOption = STORE,
    in_flight: Annotated[
        float | None,
        typer.Option(
            help="level whose latencies are taken; default: the lowest above 1 that all variants have"
        ),
    ] = None,
) -> None:
    """Write a table of measured settings, for `vbon serve --auto.table` or PUT /auto/table."""
    from service.loadtest.analysis.table import measured_table
    from vbon.measured.table import write_table

    with errors_as_lines():
        found = measured_table(_load(run, store), in_flight)
        write_table(out, found)
        typer.echo(f"{out}: {len(found.rows)} settings at {found.concurrency} in flight")


@cli.command("list", cls=HelpCommand)
def list_(
    store: StoreOption = STORE,
    tag: Annotated[str | None, typer.Option(help="show only runs with this tag")] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="number of runs to show, the newest first")
    ] = 20,
) -> None:
    """List the runs of the store, newest first."""
    from service.loadtest.report.terminal import print_runs
    from service.store import list_runs, open_store
    from vbon.terminal import table_console

    with errors_as_lines():
        print_runs(table_console(), list_runs(open_store(store), tag=tag, limit=limit))


@cli.command(cls=HelpCommand)
def show(
    run: Annotated[
        str, typer.Argument(help="id, the beginning of one, or a tag; or a result.json")
    ],
    store: StoreOption = STORE,
    html: Annotated[Path | None, typer.Option(help="file for the HTML report")] = None,
    full: Annotated[bool, typer.Option(help="print every table instead of the verdict")] = False,
) -> None:
    """Print a kept run; --html FILE writes its report."""
    from service.loadtest.report.terminal import print_result
    from service.loadtest.report.write import html_page
    from vbon.storage.atomic import write_text
    from vbon.terminal import table_console

    with errors_as_lines():
        result = _load(run, store)
        print_result(table_console(), result, full=full)
        if html is not None:
            write_text(html, html_page(result))


@cli.command(cls=HelpCommand)
def tag(
    run: Annotated[str, typer.Argument(help="id, or the beginning of one")],
    tags: Annotated[list[str], typer.Argument(help="tags to put on the run")],
    store: StoreOption = STORE,
    remove: Annotated[bool, typer.Option(help="take the tags off instead")] = False,
) -> None:
    """Put tags on a run, so that it is found again: `compare before after`."""
    from service.store import open_store, tag_run

    with errors_as_lines():
        found = tag_run(open_store(store), run, tags, remove=remove)
        typer.echo(f"{found.id}: {', '.join(found.tags) or 'no tags'}")


@cli.command(cls=HelpCommand)
def schema() -> None:
    """Print the JSON schema of result.json."""
    from service.loadtest.schema import LoadTestResult

    typer.echo(json.dumps(LoadTestResult.model_json_schema(), indent=2))


def _load(name: str, store: str) -> LoadTestResult:
    """Load a result from a file, a directory or the store."""
    from pydantic import ValidationError

    from service.loadtest.schema import LoadTestResult
    from vbon.errors import DataError

    path = Path(name)
    file = path / "result.json" if path.is_dir() else path
    try:
        if file.is_file():
            return LoadTestResult.model_validate_json(file.read_text(encoding="utf-8"))
        from service.store import find_run, open_store

        return LoadTestResult.model_validate(find_run(open_store(store), name)[1])
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is not a load test result of this version: {error}") from error


def main() -> None:
    """Run the command that the arguments name, or ``run`` if they name none."""
    cli(args=sys.argv[1:], prog_name="python -m service.loadtest")


if __name__ == "__main__":
    main()
