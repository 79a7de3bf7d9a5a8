"""Runs the requested rows and prints the table."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvicorn
from rich.table import Table

from service.bench.config import BenchSettings
from service.bench.harness import Bench, Figure, served
from service.bench.rows import ROWS
from service.runtime.build import build_runtime
from vbon.errors import InvalidInputError
from vbon.prompt_files import read_prompt_texts
from vbon.prompts import Prompt
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance
from vbon.terminal import table_console

logger = logging.getLogger(__name__)

MAX_PROMPTS = 1000


def run_bench(settings: BenchSettings) -> dict[str, Any]:
    """Measure the rows, print the table, write the ``--json`` file, and return what is written to it.

    Raises:
        InvalidInputError: unknown row, or API keys are configured, which the bench does not send.
        CheckpointError: a model cannot be served.
    """
    for row in settings.rows:
        if row not in ROWS:
            raise InvalidInputError(
                f"unknown row {row!r}; the rows are {', '.join(ROWS)}", field="rows"
            )
    if settings.auth.keys_file is not None:
        raise InvalidInputError(
            "the bench sends no API key to the service that it starts; run it with --auth.keys-file none",
            field="auth.keys_file",
        )
    # The same event loop that uvicorn would choose for a server.
    loop_factory = uvicorn.Config("service.app:create_app").get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        figures = runner.run(_measure(settings))
    result = {
        **provenance(settings.model_dump(mode="json")),
        "figures": [figure.as_dict() for figure in figures],
    }
    if settings.json_file is not None:
        write_json(settings.json_file, result)
    return result


async def _measure(settings: BenchSettings) -> list[Figure]:
    prompts = [Prompt(text=text) for text in read_prompt_texts(settings.prompts, MAX_PROMPTS)]
    runtime = build_runtime(settings)
    figures: list[Figure] = []
    async with served(runtime) as url:
        bench = Bench(settings, runtime, prompts, url)
        for name in settings.rows:
            found = await ROWS[name](bench)
            for figure in found if isinstance(found, list) else [found]:
                figures.append(figure)
                logger.info("%s: %s", figure.name, figure.detail)
    console = table_console()
    console.print(table_of(settings, figures))
    return figures


def table_of(settings: BenchSettings, figures: list[Figure]) -> Table:
    """Median, smallest and largest value of each figure, beside its goal."""
    table = Table(title=f"median \\[smallest, largest] of {settings.pairs} pairs")
    for column in ("measure", "value", "goal", "reached", "sides"):
        table.add_column(column)
    for figure in figures:
        value, reached = figure.value, figure.reached
        goal = "" if figure.goal is None else f"{'>=' if figure.at_least else '<='} {figure.goal:g}"
        table.add_row(
            figure.name,
            f"{value.median:.3g} \\[{value.low:.3g}, {value.high:.3g}]",
            goal,
            "" if reached is None else ("yes" if reached else "no"),
            figure.detail,
        )
    return table
