"""Runs a whole search on a server, from settings to files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
from rich.console import Console

from service.client import ServerError
from service.loadtest.config import LoadTestSettings
from service.loadtest.load.server_description import evaluated_prompts, request_headers
from service.loadtest.load.supervised import sigterm_as_ctrl_c
from service.loadtest.plan import Load
from service.tune.config import TuneSettings
from service.tune.draws import PromptPart, digest_of_prompts
from service.tune.latency import LoadedServer
from service.tune.outputs import SPACE, write_outputs
from service.tune.reporting import RunFacts, reporting
from service.tune.search import DEFAULT_TRIALS, Effort, Findings, Search
from service.tune.server import Asker, RequestFailedError, Served, describe
from service.tune.space import Space, SpaceFile, read_space_file, resolve_space, space_text
from service.tune.trials import Trials
from vbon.errors import InvalidInputError
from vbon.measured.table import MeasuredTable
from vbon.prompt_files import built_in_prompts, read_prompt_file, write_prompts
from vbon.prompts import Prompt
from vbon.storage.atomic import write_text
from vbon.storage.locks import sole_writer
from vbon.study.split import split_of
from vbon.tuning.sole_search import sole_search
from vbon.tuning.studies import storage_url

DEFAULT_CONCURRENCY = 8
_PROMPTS = "prompts.jsonl"
_ROLES = {"tune": "train", "validate": "validation", "test": "test"}  # parts of the prompts
_STARTUP = 6  # trials before the optimiser's model is used; there are few in all


def execute(settings: TuneSettings, console: Console) -> tuple[Findings, MeasuredTable | None]:
    """Search, choose, check and write the files.

    Ctrl-C or SIGTERM ends the search; the files then have what was found until then.

    Raises:
        ServerError: the server cannot be reached, or its models have changed.
        InvalidInputError: the question or the space does not fit the server.
        DataError: prompts, space file or storage cannot be used.
        ExportError: files could not be written.
    """

    def say(words: str) -> None:
        console.print(words, highlight=False, markup=False)

    question = settings.question
    headers = _headers(settings)
    served = describe(settings.url, headers, settings.wait_s)
    _check_question(settings, served)
    served = asyncio.run(_with_facts(settings, served))
    file = SpaceFile() if settings.space is None else read_space_file(settings.space)
    best_of = question.target.best_of if question.target is not None else None
    space = resolve_space(file, served, best_of or 1)
    prompts = _prompts(settings, served, say)
    split = split_of(prompts, settings.validation_share, settings.test_share, settings.seed)
    parts = split.parts
    directory = settings.out
    storage = storage_url(settings.storage, directory)
    with sole_writer(directory), sole_search(storage, "vbon-tune/decoding"):
        directory.mkdir(parents=True, exist_ok=True)
        asked = {
            **settings.asked,
            **served.identity,
            "space": space_text(space),
            "prompts": digest_of_prompts(prompts),
        }
        trials = Trials(
            space,
            storage,
            settings.sampler,
            settings.seed,
            min(_STARTUP, max(1, (settings.trials or DEFAULT_TRIALS) // 2)),
            asked,
            directory,
        )
        write_text(directory / SPACE, space_text(space))
        write_prompts(directory / _PROMPTS, prompts)
        concurrency = None if settings.rate else settings.concurrency or DEFAULT_CONCURRENCY
        write = partial(_write, settings, served, prompts, concurrency)
        counts = {name: len(parts[part]) for name, part in _ROLES.items()}
        facts = RunFacts(settings, served, space_text(space), counts, _load(settings).label)
        with reporting(facts, trials.run_id, say) as reporter:
            found = _search(settings, served, space, parts, trials, say, write, reporter.tell)
            table = write(found)
            reporter.ended(found, table)
        return found, table


def _search(
    settings: TuneSettings,
    served: Served,
    space: Space,
    parts: dict[str, list[Prompt]],
    trials: Trials,
    say: Callable[[str], None],
    write: Callable[[Findings], Any],
    news: Callable[[Findings], None],
) -> Findings:
    """Run the search in an event loop of its own, until it ends or is interrupted."""
    search: list[Search] = []

    async def run() -> Findings:
        asker = Asker(served, settings.in_flight, settings.timeout_s)
        made = _made(settings, served, space, parts, trials, asker, say, write, news)
        search.append(made)
        try:
            return await made.run()
        finally:
            await asker.close()

    try:
        with sigterm_as_ctrl_c(), asyncio.Runner() as runner:
            return runner.run(run())
    except KeyboardInterrupt:
        found = search[0].found if search else Findings()
        found.trials, found.failed = trials.done, trials.failed()
        found.status, found.recommended = "interrupted", None
        return found


def _made(
    settings: TuneSettings,
    served: Served,
    space: Space,
    parts: dict[str, list[Prompt]],
    trials: Trials,
    asker: Asker,
    say: Callable[[str], None],
    write: Callable[[Findings], Any],
    news: Callable[[Findings], None],
) -> Search:
    draws = settings.out / "draws"
    own = {
        name: PromptPart(name, parts[part], asker, draws, settings.seed)
        for name, part in _ROLES.items()
    }
    load = _load(settings)
    loaded = LoadedServer(
        served, parts["train"], load, settings.block_s, settings.timeout_s, settings.seed
    )
    effort = Effort(
        settings.trials,
        settings.budget,
        settings.workers,
        settings.finalists,
        settings.block_s,
        settings.stress_s,
    )
    say(f"Question: {settings.question}, with {load.label} as the stated load.")
    return Search(
        settings.question,
        space,
        asker,
        own,
        trials,
        loaded,
        effort,
        describe_again=partial(describe, settings.url, _headers(settings)),
        say=say,
        on_progress=write,
        on_news=news,
    )


def _load(settings: TuneSettings) -> Load:
    """The stated load."""
    if settings.rate is not None:
        return Load("open", settings.rate)
    return Load("closed", settings.concurrency or DEFAULT_CONCURRENCY)


async def _with_facts(settings: TuneSettings, served: Served) -> Served:
    """The server with two facts that only answers tell: its embedder, and its log-probabilities."""
    asker = Asker(served, 1, settings.timeout_s)
    prompt = Prompt(text="a")
    try:
        if "mbr-bon" in served.modes:
            answer = await asker.ask("/generate?mode=mbr-bon", prompt, {"n": 1, "max_tokens": 1})
            served = replace(served, embedder=str(answer["details"].get("embedder", "")))
        if "rbon-kl" in served.modes:
            body = {"n": 1, "max_tokens": 1, "temperature": 0.9}
            try:
                await asker.ask("/generate?mode=rbon-kl", prompt, body)
                served = replace(served, tells="sampled")
            except RequestFailedError as error:
                if "log_p" not in str(error):
                    raise
    except (RequestFailedError, KeyError) as error:
        raise ServerError(f"{served.url} did not answer a first request: {error}") from error
    finally:
        await asker.close()
    return served


def _check_question(settings: TuneSettings, served: Served) -> None:
    """Refuse questions that the server cannot answer.

    Raises:
        InvalidInputError: it has no reward model, or no gold reward model where the question needs one.
    """
    metric = settings.question.metric
    if served.reward is None:
        raise InvalidInputError(
            f"{served.url} has no reward model, so no gain can be measured; start it with --reward",
            field="target",
        )
    if metric == "gold" and served.gold is None:
        raise InvalidInputError(
            f"the question is about gold rewards, and {served.url} has no gold reward model; start it with "
            "--gold, or ask for reward",
            field="target",
        )


def _prompts(settings: TuneSettings, served: Served, say: Callable[[str], None]) -> list[Prompt]:
    """The prompts of the run, without duplicates.

    Raises:
        DataError: the file cannot be read.
    """
    kept = settings.out / _PROMPTS
    if settings.prompts is not None:
        file = read_prompt_file(
            settings.prompts, column=settings.prompt_column, encoding=settings.encoding
        )
        say(file.describe(keeps_duplicates=False, limit=settings.prompt_count))
        return file.distinct()[: settings.prompt_count]
    if kept.is_file():
        return read_prompt_file(kept).distinct()
    shown = evaluated_prompts(LoadTestSettings(url=settings.url, api_key_env=settings.api_key_env))
    if shown is not None:
        say(f"{len(shown)} prompts of the evaluation that the server shows")
        distinct = list({prompt.key: prompt for prompt in shown}.values())
        return distinct[: settings.prompt_count]
    return built_in_prompts().distinct()[: settings.prompt_count]


def _headers(settings: TuneSettings) -> dict[str, str]:
    return request_headers(LoadTestSettings(url=settings.url, api_key_env=settings.api_key_env))


def _write(
    settings: TuneSettings,
    served: Served,
    prompts: list[Prompt],
    concurrency: int | None,
    found: Findings,
) -> MeasuredTable | None:
    return write_outputs(
        settings.out, settings.question, found, served, prompts, settings.recorded, concurrency
    )


def apply_table(settings: TuneSettings, table: MeasuredTable) -> None:
    """Give the server the table, for its mode ``auto``.

    Raises:
        ServerError: it refused, or cannot be reached.
    """
    try:
        response = httpx.put(
            f"{settings.url}/auto/table",
            json=table.model_dump(mode="json"),
            headers=_headers(settings),
            timeout=60,
        )
    except httpx.HTTPError as error:
        raise ServerError(f"{settings.url} did not take the table: {error}") from error
    if response.is_error:
        try:
            said = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = response.text[:200]
        raise ServerError(
            f"the server did not take the table (HTTP {response.status_code}): {said}; it is kept in "
            f"{settings.out / 'table.json'}"
        )
