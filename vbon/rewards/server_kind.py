"""Finds out which kind of reward server answers at a URL, whether its model has one output, and its scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import httpx

from vbon.errors import CheckpointError, RewardError
from vbon.http.body import WireError
from vbon.prompts import Prompt
from vbon.rewards.protocol import Scorable
from vbon.rewards.scorer_client import (
    CancelledCallError,
    ScorerClient,
    StatusError,
    UnreadableError,
)
from vbon.rewards.server_formats import (
    FORMATS,
    OWN,
    FormatOptions,
    HeadError,
    ServerFormat,
    placed_scores,
)

# Two completions that most reward models score differently, and neither of which is long.
PROBE = [
    Scorable(Prompt(text="Name the capital of France."), completion)
    for completion in (" The capital of France is Paris.", " no idea, 1234 xyz")
]
CHAT_PROBE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
# Statuses of a server that has no such route, or does not take such a request.
_REFUSED = (400, 404, 405, 406, 411, 413, 415, 422, 424, 501)
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class ServerKind:
    """A server that was found.

    Attributes:
        url: where to send requests.
        words: one sentence on the server, its model and scale.
        warning: a doubt about the scale; empty if there is none.
    """

    url: str
    format: ServerFormat
    options: FormatOptions
    words: str = ""
    warning: str = ""


def find_kind(client: ScorerClient, url: str, limit_s: float) -> ServerKind:
    """Ask the server in every known format until it answers in one.

    Raises:
        CheckpointError: it answers in none of them, asks for credentials, or its model has several outputs.
        RewardError: it does not answer now; it may later.
    """
    model: str | None = None
    named = False
    refusals: list[str] = []
    failures: list[RewardError] = []
    for target, kind in _candidates(url):
        if kind.takes_model and not named:
            model, named = _model_name(client, url, limit_s), True
        options = FormatOptions(model=model if kind.takes_model else None)
        try:
            scores = _scores(client, target, kind, options, limit_s)
        except HeadError as error:
            raise CheckpointError(f"the reward server at {target} {error}") from error
        except UnreadableError as error:
            refusals.append(f"{kind.title} /{kind.path}: {error}")
        except StatusError as error:
            if error.status in (401, 403):
                raise CheckpointError(
                    f"{error}; let a proxy add the credentials that the scorer needs"
                ) from error
            if error.status not in _REFUSED and error.status != 500:
                raise
            if error.status == 500:
                failures.append(error)  # the format may be wrong, or the server broken
            refusals.append(f"{kind.title} /{kind.path}: HTTP {error.status}")
        else:
            return _described(client, ServerKind(target, kind, options), scores, limit_s)
    if len(failures) == len(refusals):  # as of a server that is only broken for the moment
        raise failures[-1]
    raise CheckpointError(
        f"the server at {url} answers in no known format of a reward server; tried {'; '.join(refusals)}"
    )


def _candidates(url: str) -> Iterator[tuple[str, ServerFormat]]:
    """The addresses and formats to try, first the format that the path names."""
    parts = httpx.URL(url)
    path = parts.path.rstrip("/")
    last = path.rpartition("/")[2]
    if path in ("", "/v1"):
        for kind in FORMATS:
            yield str(parts.copy_with(path=f"/{kind.path}")), kind
        yield str(parts.copy_with(path="/v1/score")), OWN  # another service of this project
        yield url, OWN
        return
    named = [kind for kind in FORMATS if kind.path == last]
    for kind in [*named, *(kind for kind in FORMATS if kind not in named)]:
        yield url, kind


def _scores(
    client: ScorerClient, url: str, kind: ServerFormat, options: FormatOptions, limit_s: float
) -> list[float | None]:
    """The scores of the probe.

    Raises:
        HeadError: the model has several outputs.
        UnreadableError: the answer has another form.
        RewardError: the server refuses the request, or does not answer.
    """
    calls = kind.calls(PROBE, options)
    answers = client.ask(url, [call.body for call in calls], limit_s)
    try:
        return placed_scores(kind, calls, answers, "the server")
    except (WireError, RewardError) as error:
        raise UnreadableError(str(error)) from error


def _described(
    client: ScorerClient, kind: ServerKind, scores: list[float | None], limit_s: float
) -> ServerKind:
    """The kind with its chat template, its scale and a sentence on it."""
    options, scale, warning = kind.options, "scores as the server computes them", ""
    if kind.format.renders_chats and _renders_chats(client, kind, limit_s):
        special = _lacks_special_tokens(client, kind, limit_s)
        options = replace(options, chats=True, special_tokens=special)
        scores = _scores(client, kind.url, kind.format, options, limit_s)
    if kind.format.rescales:
        scaled = _scores(client, kind.url, kind.format, replace(options, raw=False), limit_s)
        raw = not _alike(scores, scaled) or any(s is not None and not 0 <= s <= 1 for s in scores)
        scale = "raw scores" if raw else "scores between 0 and 1"
        if not raw:
            warning = (
                f"the scores of {kind.url} lie between 0 and 1 whether or not raw ones are asked for, so "
                "they may be probabilities: the best candidate is the same, but modes and training that "
                "depend on the scale of rewards are not"
            )
    model = "" if options.model is None else f", model {options.model}"
    chats = ", chats in its own template" if options.chats else ""
    words = (
        f"{kind.url} is a reward server ({kind.format.title}, format of /{kind.format.path}){model}: one "
        f"output, {scale}{chats}"
    )
    return replace(kind, options=options, words=words, warning=warning)


def _renders_chats(client: ScorerClient, kind: ServerKind, limit_s: float) -> bool:
    model = {} if kind.options.model is None else {"model": kind.options.model}
    try:
        [answer] = client.ask(kind.url, [model | CHAT_PROBE], limit_s)
        return len(kind.format.read(answer, 1)) == 1
    except (StatusError, UnreadableError, WireError, HeadError):
        return False


def _lacks_special_tokens(client: ScorerClient, kind: ServerKind, limit_s: float) -> bool:
    """True if the server's tokenizer has special tokens that its chat template does not write.

    A classifier here adds them in that case (:func:`~vbon.prompts.render_for_reward`), such as [CLS] and
    [SEP]; vLLM does not unless it is asked. A server that does not show its tokens is not asked.
    """
    model = {} if kind.options.model is None else {"model": kind.options.model}
    body = model | CHAT_PROBE | {"add_generation_prompt": False}
    bodies = [body | {"add_special_tokens": added} for added in (False, True)]
    try:
        address = str(httpx.URL(kind.url).join("tokenize"))
        without, with_them = client.ask(address, bodies, limit_s)
        plain, added = without["tokens"], with_them["tokens"]
        # Doubled where the template writes the first of them itself.
        return bool(added != plain and added[:1] != added[1:2])
    except CancelledCallError:
        raise
    except (RewardError, KeyError, TypeError):
        return False


def _alike(one: list[float | None], other: list[float | None]) -> bool:
    return all(
        a == b or (a is not None and b is not None and abs(a - b) <= _SAME)
        for a, b in zip(one, other, strict=True)
    )


def _model_name(client: ScorerClient, url: str, limit_s: float) -> str | None:
    """The name of the server's only model, if it lists its models as OpenAI does."""
    parts = httpx.URL(url)
    for path in ("/v1/models", "/models"):
        try:
            [answer] = client.ask(str(parts.copy_with(path=path)), [None], limit_s)
        except CancelledCallError:
            raise
        except RewardError:  # the name is worth no failure
            continue
        data = answer.get("data") if isinstance(answer, dict) else None
        if isinstance(data, list) and len(data) == 1 and isinstance(data[0], dict):
            name = data[0].get("id")
            return name if isinstance(name, str) else None
    return None
