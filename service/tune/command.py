"""The command ``vbon tune``, for decoding."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import typer

from vbon.cli.settings_command import add_settings_command
from vbon.config import Settings

if TYPE_CHECKING:
    from service.tune.against_plain import AgainstPlainSettings
    from service.tune.config import TuneSettings

UNMET, INTERRUPTED = 3, 130
app = typer.Typer(add_completion=False)


@app.callback()
def _group() -> None:
    """Hold the one command below."""


def _settings() -> type[Settings]:
    from service.tune.config import TuneSettings

    return TuneSettings


def _plain_settings() -> type[Settings]:
    from service.tune.against_plain import AgainstPlainSettings

    return AgainstPlainSettings


def _against_plain(settings: AgainstPlainSettings) -> None:
    from service.tune.against_plain import compare
    from vbon.terminal import table_console

    compare(settings, table_console())


def _run(settings: TuneSettings) -> int:
    logging.basicConfig(level="WARNING", format="%(levelname)s %(message)s")
    from service.tune.execute import apply_table, execute
    from service.tune.report import print_report
    from vbon.terminal import table_console

    console = table_console()
    found, table = execute(settings, console)
    print_report(
        console, settings.question, found, currency=settings.currency, pareto=settings.pareto
    )
    console.print(f"files: {settings.out} (table.json, tune.json, space.toml)", highlight=False)
    if found.status == "recommended":
        console.print(
            f"serve it: vbon serve --config {settings.out / 'serve.toml'}", highlight=False
        )
    if settings.apply and table is not None and found.status != "interrupted":
        apply_table(settings, table)
        console.print("the server has the table for mode auto", highlight=False)
    return {"recommended": 0, "unmet": UNMET}.get(found.status, INTERRUPTED)


add_settings_command(
    app,
    "run",
    "Find the cheapest setting of a running server that reaches a reward (the default command).",
    _settings,
    _run,
)
add_settings_command(
    app,
    "against-plain",
    "Compare the recommended setting with a client that samples n times and scores.",
    _plain_settings,
    _against_plain,
)
