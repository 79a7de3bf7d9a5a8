"""Compares the recommended setting with a plain client: one request for n samples, and one scoring call.

Both answer the same prompts on the same server, in turns and with the same number of requests in flight. The
plain client does what a careful user without this service would do: n completions of the reference policy in
one request, all of their rewards in a second one, and the best of them kept. Rewards and gold rewards of both
sides are measured afterwards, outside the timed rounds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import numpy as np
from pydantic import Field
from rich.console import Console

from service.client import ServerError
from service.loadtest.config import LoadTestSettings
from service.loadtest.load.connection import ConnectionPool, ProtocolError
from service.loadtest.load.server_description import request_headers
from service.tune.drawing import Drawing
from service.tune.server import Served, changed, describe
from service.tune.setting import setting_of
from vbon.config import PROMPT_FILE, Settings
from vbon.errors import DataError, InvalidInputError
from vbon.maths.intervals import MeanInterval, MedianRange
from vbon.maths.statistics import bootstrap_mean, median_range
from vbon.measured.target import parse_target
from vbon.prompt_files import prompt_record, read_prompts
from vbon.prompts import Prompt
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance
from vbon.study.split import split_of

_RECORD = "tune.json"


class AgainstPlainSettings(Settings):
    """Compare what `vbon tune` recommends with a plain client that samples n times and scores.

    Both sides answer on the same server, in turns, with the same requests in flight. Needs a server with the
    models that the run measured, and texts as prompts.

    Examples:
      vbon tune against-plain --run runs/tune --n 16 --prompts heldout.jsonl
      vbon tune against-plain --run runs/tune --n 16 --auto
    """

    url: str = Field("http://127.0.0.1:8000", description="address of the server, without /v1")
    api_key_env: str = Field(
        "VBON_REMOTE_API_KEY", description="environment variable with the server's API key"
    )
    run: Path = Field(Path("runs/tune"), description="directory of the results of `vbon tune`")
    n: int = Field(16, ge=2, description="samples of the plain client")
    auto: bool = Field(
        False,
        description="compare mode auto instead, asked for the level of the run's target as reward; the "
        "server needs the run's table (--apply), and for a target of gold --auto.gain gold, which is checked",
    )
    prompts: Path | None = Field(
        None,
        description=f"file of prompts: {PROMPT_FILE}; default: the run's test prompts, on which nothing "
        "was tuned",
    )
    concurrency: int = Field(8, ge=1, description="requests in flight of each side")
    rounds: int = Field(5, ge=2, description="timed rounds of each side, in turns")
    round_s: float = Field(
        5.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds of a round, whose last answers are waited for",
    )
    json_file: Path | None = Field(None, description="file for the figures")


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: its text, and the tokens that were decoded for it."""

    text: str
    tokens: int


Answer = Callable[[Prompt], Awaitable[Answered]]


@dataclass(frozen=True, slots=True)
class Side:
    """The figures of one side; rewards by prompt, rates over the rounds."""

    reward: MeanInterval
    gold: MeanInterval | None
    tokens: MeanInterval
    answers_per_s: MedianRange


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides, and the recommended setting's figures beside the plain client's.

    Attributes:
        gold_difference: paired by prompt; that of the serving rewards without a gold reward model.
        tokens_share: tokens an answer over those of the plain client.
        speed: answers per second over those of the plain client, by round.
    """

    setting: str
    n: int
    tuned: Side
    plain: Side
    difference: MeanInterval
    tokens_share: float
    speed: MedianRange


def compare(settings: AgainstPlainSettings, console: Console) -> Comparison:
    """Measure both sides and print them.

    Raises:
        DataError: the run has no recommendation, or mode auto would take the target for another reward.
        ServerError: the server cannot be reached, or serves other models.
    """
    record = _record(settings.run)
    asked = (
        auto_asked(settings.run, record) if settings.auto else setting_asked(settings.run, record)
    )
    prompts = [one for one in judging_prompts(settings, record) if one.text is not None]
    if not prompts:
        raise InvalidInputError(
            "the plain client takes texts, and no prompt is one", field="prompts"
        )
    headers = request_headers(LoadTestSettings(url=settings.url, api_key_env=settings.api_key_env))
    served = describe(settings.url.rstrip("/").removesuffix("/v1"), headers)
    _check_same_models(settings.run, record, served)
    if settings.auto:
        check_gain(served, record)
    found = asyncio.run(_compare(settings, served, asked, prompts))
    _print(console, found)
    if settings.json_file is not None:
        content = {**provenance(settings.model_dump(mode="json")), **asdict(found)}
        write_json(settings.json_file, content)
    return found


def judging_prompts(settings: AgainstPlainSettings, record: dict[str, Any]) -> list[Prompt]:
    """The prompts that both sides answer: those that are given, or the test prompts of the run.

    The others of the run chose the setting, which would look better on them than it is.

    Raises:
        DataError: a file cannot be read, or the record does not say how the prompts were split.
    """
    if settings.prompts is not None:
        return list(read_prompts(settings.prompts))
    try:
        config = record["config"]
        shares = config["validation_share"], config["test_share"], config["seed"]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{settings.run / 'tune.json'} does not say which prompts were tuned on; give --prompts"
        ) from error
    return split_of(read_prompts(settings.run / "prompts.jsonl"), *shares).parts["test"]


@dataclass(frozen=True, slots=True)
class Asked:
    """The requests of the tuned side: their path, and their fields besides the prompt."""

    label: str
    path: str
    body: dict[str, Any]


def setting_asked(run: Path, record: dict[str, Any]) -> Asked:
    """Requests for the setting that a run recommends.

    Raises:
        DataError: there is none, or the record is damaged.
    """
    path = run / _RECORD
    try:
        found = record["recommendation"]
        if found is None:
            raise DataError(f"{path} has no recommendation; its status is {record['status']!r}")
        sampling = found["sampling"]
        drawing = Drawing(
            found["policy"],
            sampling["temperature"],
            sampling["top_p"],
            sampling["max_tokens"],
            sampling["top_k"],
        )
        setting = setting_of(found["mode"], drawing, found["n"], found["settings"])
    except (KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    unscored = {"score": False} if setting.single else {}
    return Asked(setting.label, setting.path, {**setting.body, **unscored})


def auto_asked(run: Path, record: dict[str, Any]) -> Asked:
    """Requests of mode ``auto`` for the reward that the target of a run was on its tuning prompts.

    Raises:
        DataError: the run had no target, or one of a win rate, or the record is damaged.
    """
    path = run / _RECORD
    try:
        level, target = record["level"], record["config"]["target"]
        metric = None if target is None else parse_target(target).metric
    except (KeyError, TypeError, InvalidInputError) as error:
        raise _damaged(path, error) from error
    if not isinstance(level, int | float) or metric not in ("reward", "gold"):
        raise DataError(
            f"{path} has no level of a reward that mode auto could be asked for; tune with --target "
            "'reward >= ...' or 'gold >= ...', or leave out --auto"
        )
    body = {"budget": {"reward": level}, "score": False}
    return Asked(f"mode auto for a reward of {level:.4g}", "/generate?mode=auto", body)


def check_gain(
    served: Served, record: dict[str, Any], transport: httpx.BaseTransport | None = None
) -> None:
    """Check that mode ``auto`` of the server weighs the reward that the target of a run names.

    Raises:
        DataError: it weighs the other one, or there is no table.
        ServerError: the server cannot be reached.
    """
    headers = dict(served.headers)
    try:
        with httpx.Client(base_url=served.url, headers=headers, transport=transport) as client:
            response = client.get("/auto/table")
        found = response.json()
        if response.status_code != 200:
            raise DataError(f"mode auto cannot be compared: {found['error']['message']}")
        gain = found["gain"]
    except httpx.HTTPError as error:
        raise ServerError(f"{served.url}/auto/table: {error or type(error).__name__}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"the answer of {served.url}/auto/table is not from this service"
        ) from error
    wanted = parse_target(record["config"]["target"]).metric
    if gain != wanted:
        words = {"gold": "gold reward"}
        raise DataError(
            f"mode auto of this server weighs the {words.get(gain, gain)}, and the target of the run is of "
            f"the {words.get(wanted, wanted)}; start it with --auto.gain {wanted}"
        )


def _record(run: Path) -> dict[str, Any]:
    path = run / _RECORD
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not the record of `vbon tune`: {error}")


def _check_same_models(run: Path, record: dict[str, Any], served: Served) -> None:
    try:
        models = record["models"]
        policies = dict(models["policies"])
        before = replace(served, policies=policies, reward=models["reward"], gold=models["gold"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(run / _RECORD, error) from error
    how = before.changed_to(served)
    if how:
        raise changed(how)


async def _compare(
    settings: AgainstPlainSettings, served: Served, asked: Asked, prompts: Sequence[Prompt]
) -> Comparison:
    pool = ConnectionPool(served.url, dict(served.headers))
    sides = {
        "tuned": _tuned_answer(pool, asked, served),
        "plain": _plain_answer(pool, settings.n, served),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    tokens: dict[str, list[list[int]]] = {name: [[] for _ in prompts] for name in sides}
    texts: dict[str, list[list[str]]] = {name: [[] for _ in prompts] for name in sides}
    try:
        for answer in sides.values():  # the first answers are slower than the others
            await asyncio.gather(*(answer(prompt) for prompt in prompts[: settings.concurrency]))
        for number in range(settings.rounds):
            names = list(sides) if number % 2 == 0 else list(reversed(list(sides)))
            for name in names:
                rate = await _round(
                    settings, sides[name], prompts, texts[name], tokens[name], number
                )
                rates[name].append(rate)
        for name, answer in sides.items():  # every prompt counts, however fast a side was
            missing = [place for place, own in enumerate(texts[name]) if not own]
            await _fill(settings, answer, prompts, missing, texts[name], tokens[name])
        scored = {
            (name, model): await _scores(pool, model, prompts, texts[name])
            for name in sides
            for model in (["reward", "gold"] if served.gold is not None else ["reward"])
        }
    finally:
        await pool.close()
    judge = "gold" if served.gold is not None else "reward"
    difference = scored["tuned", judge] - scored["plain", judge]
    made = {
        name: Side(
            bootstrap_mean(scored[name, "reward"]),
            bootstrap_mean(scored[name, "gold"]) if served.gold is not None else None,
            bootstrap_mean([float(np.mean(own)) for own in tokens[name]]),
            median_range(rates[name]),
        )
        for name in sides
    }
    return Comparison(
        asked.label,
        settings.n,
        made["tuned"],
        made["plain"],
        bootstrap_mean(difference[~np.isnan(difference)]),
        made["tuned"].tokens.mean / made["plain"].tokens.mean,
        median_range([a / b for a, b in zip(rates["tuned"], rates["plain"], strict=True)]),
    )


async def _round(
    settings: AgainstPlainSettings,
    answer: Answer,
    prompts: Sequence[Prompt],
    texts: list[list[str]],
    tokens: list[list[int]],
    number: int,
) -> float:
    """Answers per second of a closed loop, counted until the last answer arrives."""
    begun, sent, done = perf_counter(), 0, 0

    async def worker() -> None:
        nonlocal sent, done
        while perf_counter() - begun < settings.round_s:
            place = (number * 17 + sent) % len(prompts)
            sent += 1
            found = await answer(prompts[place])
            done += 1
            texts[place].append(found.text)
            tokens[place].append(found.tokens)

    await asyncio.gather(*(worker() for _ in range(settings.concurrency)))
    return done / (perf_counter() - begun)


async def _fill(
    settings: AgainstPlainSettings,
    answer: Answer,
    prompts: Sequence[Prompt],
    missing: Sequence[int],
    texts: list[list[str]],
    tokens: list[list[int]],
) -> None:
    room = asyncio.Semaphore(settings.concurrency)

    async def one(place: int) -> None:
        async with room:
            found = await answer(prompts[place])
        texts[place].append(found.text)
        tokens[place].append(found.tokens)

    await asyncio.gather(*(one(place) for place in missing))


def _tuned_answer(pool: ConnectionPool, asked: Asked, served: Served) -> Answer:
    kept = {"store": False} if served.collects else {}

    async def answer(prompt: Prompt) -> Answered:
        found = await _post(pool, asked.path, {**prompt_record(prompt), **asked.body, **kept})
        return Answered(found["text"], found["usage"]["generated_tokens"])

    return answer


def _plain_answer(pool: ConnectionPool, n: int, served: Served) -> Answer:
    """A client of OpenAI's API: n samples in one request, their rewards in another."""
    sampling = {"max_tokens": served.max_tokens, "temperature": served.temperature, "n": n}
    kept = {"store": False} if served.collects else {}

    async def answer(prompt: Prompt) -> Answered:
        asked = {"model": served.reference, "prompt": prompt.text, **sampling, **kept}
        found = await _post(pool, "/v1/completions", asked)
        completions = [choice["text"] for choice in found["choices"]]
        scored = await _post(pool, "/v1/score", {"prompt": prompt.text, "completions": completions})
        rewards = [-np.inf if reward is None else reward for reward in scored["rewards"]]
        best = completions[int(np.argmax(rewards))]
        return Answered(best, found["usage"]["completion_tokens"])

    return answer


async def _scores(
    pool: ConnectionPool, model: str, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]
) -> np.ndarray[Any, Any]:
    """The mean reward of the answers to each prompt."""
    found = []
    for prompt, own in zip(prompts, texts, strict=True):
        body = {"model": model, "prompt": prompt.text, "completions": list(own)[:16]}
        rewards = [r for r in (await _post(pool, "/v1/score", body))["rewards"] if r is not None]
        found.append(float(np.mean(rewards)) if rewards else np.nan)
    return np.array(found)


async def _post(pool: ConnectionPool, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(120), pool.post(path, json.dumps(body).encode()) as response:
            content = await response.read()
    except (OSError, ProtocolError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise DataError(f"{path} was not answered: {error or type(error).__name__}") from error
    if response.status != 200:
        raise DataError(f"{path} was refused (HTTP {response.status}): {content[:300]!r}")
    return dict(json.loads(content))


def _print(console: Console, found: Comparison) -> None:
    judge = "gold reward" if found.plain.gold is not None else "reward"
    lines = [
        f"Setting: {found.setting}; plain client: {found.n} samples of the reference policy in one request, "
        "and one scoring call",
        f"{judge}: {found.difference} over the plain client, paired by prompt",
        f"tokens an answer: {found.tokens_share:.3f} of the plain client's "
        f"({found.tuned.tokens.mean:.1f} against {found.plain.tokens.mean:.1f})",
        f"answers/s: {found.speed.median:.2f} times the plain client's [{found.speed.low:.2f}, "
        f"{found.speed.high:.2f}] ({found.tuned.answers_per_s.median:.1f} against "
        f"{found.plain.answers_per_s.median:.1f})",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)
