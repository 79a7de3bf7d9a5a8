"""Measure a running server's modes against each other; compare and keep runs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vbon.config import load_settings
from vbon.errors import VbonError

if TYPE_CHECKING:
    from service.loadtest.schema import LoadTestResult

PROGRAM = "python -m service.loadtest"
FAILED, WORSE, INTERRUPTED = 1, 3, 130
EPILOG = (
    "Exit status: 0 measured; 1 could not be; 2 wrong usage; 3 compare --fail-if-worse found B worse; "
    "130 interrupted, and what was measured is reported."
)

cli = typer.Typer(add_completion=False, help=__doc__, epilog=EPILOG)
StoreOption = Annotated[str, typer.Option(help="a SQLite file or a database URL")]
STORE = "vbon-runs.db"


@contextmanager
def _told() -> Iterator[None]:
    """Errors as one line and status 1."""
    try:
        yield
    except VbonError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from error


@cli.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    }
)
def run(context: typer.Context) -> None:
    """Measure (the default). Flags or --config FILE.toml; see run --help. The same --out goes on."""
    from service.loadtest.config import LoadTestSettings

    settings = load_settings(LoadTestSettings, context.args, program=PROGRAM)
    logging.basicConfig(level="WARNING", format="%(levelname)s %(message)s")
    from service.loadtest.execute import execute
    from service.loadtest.load.progress import TerminalProgress
    from service.loadtest.report.terminal import show
    from vbon.terminal import table_console

    console = table_console()
    with _told():
        with TerminalProgress(console) as progress:
            result, interrupted = execute(settings, progress, console)
        show(console, result)
        console.print(f"report: {settings.out / 'report.html'} (run {result.id})", highlight=False)
    raise typer.Exit(INTERRUPTED if interrupted else 0)


@cli.command()
def report(
    directory: Annotated[Path, typer.Argument(help="a run's --out directory")],
) -> None:
    """Write the reports of a run again from its journal, also of one that was killed."""
    from service.loadtest.execute import rebuild
    from service.loadtest.report.terminal import show
    from service.loadtest.report.write import write_report
    from vbon.terminal import table_console

    with _told():
        _, result = rebuild(directory)
        write_report(result, directory)
        show(table_console(), result)


@cli.command()
def compare(
    a: Annotated[str, typer.Argument(help="result.json, its directory, or a run of the store")],
    b: Annotated[str, typer.Argument(help="the same; what is called better or worse")],
    store: StoreOption = STORE,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the comparison")] = None,
    fail_if_worse: Annotated[bool, typer.Option(help="exit 3 if B is worse")] = False,
) -> None:
    """Tell whether two runs differ by more than their own rounds do.

    Needs 5 rounds in each, or 4 without rewards.
    """
    from service.loadtest.analysis.compare import compare_runs
    from service.loadtest.report.terminal import show_comparison
    from vbon.storage.atomic import write_json
    from vbon.terminal import table_console

    with _told():
        found = compare_runs(_load(a, store), _load(b, store))
        show_comparison(table_console(), found)
        if json_file is not None:
            write_json(json_file, found.model_dump(mode="json"))
    if fail_if_worse and found.worse:
        raise typer.Exit(WORSE)


@cli.command("list")
def list_(
    store: StoreOption = STORE,
    tag: Annotated[str | None, typer.Option(help="only runs with this tag")] = None,
    limit: Annotated[int, typer.Option(min=1, help="the newest so many")] = 20,
) -> None:
    """List the runs of the store, newest first."""
    from service.loadtest.report.terminal import show_runs
    from service.store import list_runs, open_store
    from vbon.terminal import table_console

    with _told():
        show_runs(table_console(), list_runs(open_store(store), tag=tag, limit=limit))


@cli.command()
def show(
    run: Annotated[str, typer.Argument(help="id (or its beginning) or tag, or a result.json")],
    store: StoreOption = STORE,
    html: Annotated[Path | None, typer.Option(help="write the report again")] = None,
) -> None:
    """Print a kept run; --html FILE writes its report."""
    from service.loadtest.report.terminal import show as show_result
    from service.loadtest.report.write import html_page
    from vbon.storage.atomic import write_text
    from vbon.terminal import table_console

    with _told():
        result = _load(run, store)
        show_result(table_console(), result)
        if html is not None:
            write_text(html, html_page(result))


@cli.command()
def tag(
    run: Annotated[str, typer.Argument(help="id, or its beginning")],
    tags: Annotated[list[str], typer.Argument(help="words")],
    store: StoreOption = STORE,
    remove: Annotated[bool, typer.Option(help="take them off instead")] = False,
) -> None:
    """Put tags on a run, so that it is found again: `compare before after`."""
    from service.store import open_store, tag_run

    with _told():
        found = tag_run(open_store(store), run, tags, remove=remove)
        typer.echo(f"{found.id}: {', '.join(found.tags) or 'no tags'}")


@cli.command()
def schema() -> None:
    """Print the JSON schema of result.json."""
    from service.loadtest.schema import LoadTestResult

    typer.echo(json.dumps(LoadTestResult.model_json_schema(), indent=2))


def _load(name: str, store: str) -> LoadTestResult:
    """A result by file, directory, or the store."""
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
        raise DataError(f"{name} is no load test's result of this version: {error}") from error


def main() -> None:
    """Entry point; without a command, ``run``."""
    known = {"run", "report", "compare", "list", "show", "tag", "schema", "--help", "-h"}
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        sys.argv.insert(1, "run")
    cli(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
