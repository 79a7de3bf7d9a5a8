"""Runs the requested rows and prints the table."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvicorn

from service.bench.config import BenchSettings
from service.bench.figures import Figure, table_of
from service.bench.harness import Bench, served
from service.bench.rows import ROWS
from service.runtime.build import build_runtime
from vbon.errors import DataError, InvalidInputError
from vbon.prompt_files import read_prompt_file
from vbon.prompts import Prompt
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance
from vbon.terminal import table_console

logger = logging.getLogger(__name__)

MAX_PROMPTS = 1000
CONTESTS = ("client", "peers", "single")  # rows that send the same texts to other programs


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


def _prompts(settings: BenchSettings) -> list[Prompt]:
    """The first prompts of the file.

    Raises:
        DataError: the file cannot be used, or has chats and a row sends texts to other programs.
    """
    file = read_prompt_file(
        settings.prompts, column=settings.prompt_column, encoding=settings.encoding
    )
    logger.info("%s", file.describe(keeps_duplicates=True, limit=MAX_PROMPTS))
    prompts = file.first(MAX_PROMPTS)
    texts_only = [row for row in settings.rows if row in CONTESTS]
    if texts_only and any(prompt.messages for prompt in prompts):
        raise DataError(
            f"{file.name} has chats, but {' and '.join(texts_only)} compare programs on texts; give prompts "
            "that are texts, or other --rows"
        )
    return prompts


async def _measure(settings: BenchSettings) -> list[Figure]:
    prompts = _prompts(settings)
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
    console.print(table_of(settings.pairs, figures))
    return figures
