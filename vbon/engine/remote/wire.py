"""Requests to an OpenAI-compatible server, and strict checks of its answers.

Everything here is a pure function of JSON. An answer that does not match the request exactly raises a
:class:`WireError`, so that nothing half understood is passed on. Its message follows the server's URL.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbon.engine.protocol import (
    UNKNOWN_TOKEN,
    Candidate,
    FinishReason,
    Partial,
    Sampling,
    candidate_seed,
)
from vbon.errors import InvalidInputError
from vbon.http.body import WireError
from vbon.prompts import REPLACEMENT

_FINISHED: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
_TOKEN_ID = "token_id:"
# `vllm serve` takes parameters that a request leaves out from the model's generation_config.json. With a
# repetition penalty from there, the samples would come from another policy.
_PLAIN: dict[str, Any] = {
    "n": 1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# Fields that only some servers have, and whose effect no answer proves. These servers are known to have them.
_UNPROVEN = ("min_p", "repetition_penalty")
_EXTENDED_SERVERS = frozenset({"vllm", "sglang"})


def completion_body(
    model: str, prompt_token_ids: list[int], sampling: Sampling, index: int, *, stream: bool
) -> dict[str, Any]:
    """The body of ``POST /completions`` for one candidate."""
    body: dict[str, Any] = {
        **_PLAIN,
        "model": model,
        "prompt": prompt_token_ids,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop": list(sampling.stop),
        "stream": stream,
        # Always requested, because the parts of an answer are checked against each other. 0 would be enough
        # for the sampled token's log-probability, but some servers take 0 for "none".
        "logprobs": max(1, sampling.top_logprobs),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    if sampling.seed is not None:
        body["seed"] = candidate_seed(sampling.seed, index)
    # Only vLLM and a few others know all of these fields.
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    if sampling.min_tokens:
        body["min_tokens"] = sampling.min_tokens
    if sampling.stop_token_ids:
        body["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.logit_bias is not None:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.response_format is not None:
        body["response_format"] = _named(sampling.response_format)
    return body | _turn(sampling.priority)


def _named(response_format: Mapping[str, Any]) -> dict[str, Any]:
    """The same format with a name for its schema, which OpenAI's API requires."""
    if "json_schema" not in response_format:
        return dict(response_format)
    return {**response_format, "json_schema": {"name": "answer", **response_format["json_schema"]}}


def check_extensions(url: str, owner: str, sampling: Sampling) -> None:
    """Check that a server has the fields whose effect its answers cannot prove.

    Args:
        owner: ``owned_by`` of the server's model, which names the kind of server.

    Raises:
        InvalidInputError: the server is not known to have one; names the field.
    """
    asked = [name for name in _UNPROVEN if name in sampling.steering]
    if asked and owner not in _EXTENDED_SERVERS:
        raise InvalidInputError(
            f"{url} is not known to take {asked[0]} (its models are owned by {owner or 'nobody'!r}, not by "
            f"{' or '.join(sorted(_EXTENDED_SERVERS))}), and might ignore it; leave it out",
            field=asked[0],
        )


def _turn(priority: int) -> dict[str, int]:
    """The ``priority`` field if it is not the default; only vLLM knows this field."""
    return {"priority": priority} if priority else {}


def scoring_body(model: str, token_ids: list[int], priority: int) -> dict[str, Any]:
    """The body of ``POST /completions`` that requests the log-probabilities of given tokens."""
    asked = {"model": model, "prompt": token_ids, "max_tokens": 1, "prompt_logprobs": 0}
    return {**_PLAIN, **asked, **_turn(priority), "temperature": 1.0}


class ServerSaidError(WireError):
    """An error in the server's own words, which may repeat the prompt."""


class GrowingCandidate:
    """A candidate assembled from the pieces of a server's answer: one piece, or one per step of a stream.

    Attributes:
        finish_reason: ``None`` until the last piece.
        ending: id of the token without text that ended the candidate, if the server sends it; not one of
            ``stop_token_ids``, which elsewhere have a text.
    """

    def __init__(self, sampling: Sampling, index: int) -> None:
        self._sampling, self._index = sampling, index
        self.text = ""
        self.token_ids: tuple[int, ...] = ()
        self.token_logprobs: tuple[float, ...] = ()
        self.top_logprobs: tuple[tuple[float, ...], ...] = ()
        self.finish_reason: FinishReason | None = None
        self.ending: int | None = None

    def add(self, payload: Any) -> int | None:
        """Add one JSON answer or event, and return its ``usage.completion_tokens`` if it has one.

        Raises:
            WireError: the answer is not a piece of this candidate.
        """
        if not isinstance(payload, dict):
            raise WireError(f"sent JSON of type {type(payload).__name__} instead of an object")
        if payload.get("error"):
            raise ServerSaidError(f"failed: {error_text(payload)}")
        choices = payload.get("choices")
        usage = payload.get("usage")
        if not isinstance(choices, list):
            raise WireError("sent an answer without `choices`")
        if len(choices) > 1 or (not choices and not isinstance(usage, dict)):
            raise WireError(f"sent {len(choices)} choices; 1 was requested")
        for choice in choices:
            self._add_choice(choice)
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if count is not None and not _is_count(count):
            raise WireError(f"reports {count!r:.40} completion tokens")
        return count

    def _add_choice(self, choice: Any) -> None:
        if self.finish_reason is not None:
            raise WireError("sent more text after the end of the candidate")
        text = choice.get("text") if isinstance(choice, dict) else None
        if not isinstance(text, str):
            raise WireError("sent a choice without `text`")
        reason = choice.get("finish_reason")
        if reason is not None and reason not in _FINISHED:
            raise WireError(f"ended the candidate without finishing it ({reason!r:.40})")
        logprobs = _token_logprobs(choice.get("logprobs"), text)
        ids = _token_ids(choice, len(logprobs))
        self.text += text
        self.token_ids += ids
        self.token_logprobs += logprobs
        if self._sampling.top_logprobs:
            self.top_logprobs += _top_logprobs(
                choice.get("logprobs"), len(logprobs), self._sampling.top_logprobs
            )
        if reason is not None:
            self.finish_reason = _FINISHED[reason]
        # A `stop_reason` that is not a stop string means that a token ended the candidate.
        if (
            reason == "stop"
            and self.token_ids
            and not isinstance(choice.get("stop_reason", ""), str)
            and self.token_ids[-1] not in self._sampling.stop_token_ids
        ):
            self.ending = self.token_ids[-1]

    def check_whole(self, counted: int | None) -> None:
        """Check that the candidate is complete and has as many tokens as the server reports.

        Raises:
            WireError: the candidate is incomplete, or the numbers contradict each other.
        """
        count, limit = len(self.token_ids), self._sampling.max_tokens
        if self.finish_reason is None:
            raise WireError(f"ended its answer after {count} tokens without a finish_reason")
        if counted is not None and counted != count:
            raise WireError(f"reports {counted} completion tokens but sent {count}")
        if count > limit or (count < limit and self.finish_reason == "length"):
            raise WireError(f"ended at {count} tokens by length, but max_tokens is {limit}")
        if self.text and not count:
            raise WireError("sent text without tokens")

    def check_obeyed(self, url: str) -> None:
        """Check that the server took the fields that some servers ignore without a word.

        Raises:
            InvalidInputError: the candidate shows that the server ignored one; names the field.
        """
        sampling, stopped = self._sampling, self.finish_reason == "stop"
        asked_to_stop = bool(sampling.stop or sampling.stop_token_ids)
        if sampling.ignore_eos and stopped and (self.ending is not None or not asked_to_stop):
            raise InvalidInputError(
                f"{url} ended a candidate after {len(self.token_ids)} of {sampling.max_tokens} tokens, "
                "although ignore_eos was sent; leave it out, or use a server that takes it",
                field="ignore_eos",
            )
        self._check_tokens_obeyed(url)
        if (
            sampling.json_schema is not None
            and stopped
            and not asked_to_stop
            and not _is_json(self.text)
        ):
            raise InvalidInputError(
                f"{url} sent {self.text!r:.40}, which is not JSON, although response_format was sent; leave "
                "it out, or use a server that takes it",
                field="response_format",
            )
        kept = next((text for text in sampling.stop if text in self.text), None)
        if kept is not None:
            raise InvalidInputError(
                f"{url} sent a text that contains the stop string {kept!r:.40}; leave out stop, or use a "
                "server that ends a candidate before it",
                field="stop",
            )

    def _check_tokens_obeyed(self, url: str) -> None:
        sampling, count = self._sampling, len(self.token_ids)
        stopped = self.finish_reason == "stop"
        if stopped and count < sampling.min_tokens and not sampling.stop:
            raise InvalidInputError(
                f"{url} ended a candidate after {count} tokens, although min_tokens is "
                f"{sampling.min_tokens}; leave it out, or use a server that takes it",
                field="min_tokens",
            )
        continued = self.token_ids[sampling.min_tokens : -1 if stopped else None]
        if any(token in sampling.stop_token_ids for token in continued):
            raise InvalidInputError(
                f"{url} continued a candidate after one of the stop_token_ids; leave them out, or use a "
                "server that takes them",
                field="stop_token_ids",
            )

    def candidate(self) -> Candidate:
        """The finished candidate."""
        assert self.finish_reason is not None
        return Candidate(
            self._index,
            self._complete_text,
            self.token_ids,
            self.finish_reason,
            self.token_logprobs if self._sampling.logprobs else None,
            self.top_logprobs if self._sampling.top_logprobs else None,
        )

    def partial(self) -> Partial:
        """The candidate as far as it has arrived."""
        logprobs = self.token_logprobs if self._sampling.logprobs else None
        return Partial(
            self._index, self._complete_text, self.token_ids, self.finish_reason, logprobs
        )

    @property
    def _complete_text(self) -> str:
        """The text without a last character that is incomplete, which some servers send as U+FFFD."""
        return self.text.rstrip(REPLACEMENT)


def _token_logprobs(logprobs: Any, text: str) -> tuple[float, ...]:
    if logprobs is None and not text:
        return ()  # a last piece with only the finish_reason
    found = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(found, list):
        raise WireError("sent no `logprobs.token_logprobs`, which every candidate needs")
    return tuple(_logprob(value) for value in found)


def _top_logprobs(logprobs: Any, positions: int, count: int) -> tuple[tuple[float, ...], ...]:
    """The highest log-probabilities of each position, highest first; the sampled token may come on top."""
    found = (logprobs or {}).get("top_logprobs") if positions else []
    if not isinstance(found, list) or len(found) != positions:
        raise WireError("sent no `logprobs.top_logprobs` of each token, which this mode needs")
    if not all(isinstance(position, dict) and position for position in found):
        raise WireError("sent `logprobs.top_logprobs` that are not objects of log-probabilities")
    return tuple(
        tuple(sorted(map(_logprob, position.values()), reverse=True)[:count]) for position in found
    )


def _token_ids(choice: dict[str, Any], count: int) -> tuple[int, ...]:
    ids = choice.get("token_ids")
    if ids is None:
        tokens = (choice.get("logprobs") or {}).get("tokens") or []
        named = [t for t in tokens if isinstance(t, str) and t.startswith(_TOKEN_ID)]
        digits = [t.removeprefix(_TOKEN_ID) for t in named]
        if len(digits) != count or not all(d.isascii() and d.isdigit() for d in digits):
            return (UNKNOWN_TOKEN,) * count
        ids = [int(d) for d in digits]
    if not isinstance(ids, list) or not all(_is_count(i) for i in ids):
        raise WireError("sent `token_ids` that are not a list of token ids")
    if len(ids) != count:
        raise WireError(f"sent {len(ids)} token ids and {count} log-probabilities")
    return tuple(ids)


def read_prompt_logprobs(payload: Any, token_ids: Sequence[int], first: int) -> list[float]:
    """Log-probabilities in nats of ``token_ids[first:]``, each given the tokens before it.

    Raises:
        WireError: the server does not send them, or sends those of other tokens.
    """
    choices = payload.get("choices") if isinstance(payload, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise WireError("sent an answer without exactly one choice")
    positions = choices[0].get("prompt_logprobs")
    if positions is None:
        raise WireError("sent no `prompt_logprobs`: scoring given tokens needs this vLLM extension")
    if not isinstance(positions, list) or len(positions) != len(token_ids):
        raise WireError(
            f"sent `prompt_logprobs` of another length than the {len(token_ids)} tokens"
        )
    found = []
    for token, position in zip(token_ids[first:], positions[first:], strict=True):
        entry = position.get(str(token)) if isinstance(position, dict) else None
        if not isinstance(entry, dict):
            raise WireError(f"sent `prompt_logprobs` without token {token}")
        found.append(_logprob(entry.get("logprob")))
    return found


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as ``GET /models`` describes it.

    Attributes:
        max_model_len: context length in tokens; ``None`` if the server does not send it.
        adapter: True if it is a LoRA module, for which vLLM names the base model as its parent.
        owner: the kind of server, as ``owned_by`` names it.
    """

    max_model_len: int | None
    adapter: bool
    owner: str = ""


def read_models(payload: Any) -> dict[str, ModelCard]:
    """The models that ``GET /models`` lists, by their ids.

    Raises:
        WireError: the answer is not a list of models.
    """
    data = payload.get("data") if isinstance(payload, dict) else None
    if not isinstance(data, list) or not all(isinstance(card, dict) for card in data):
        raise WireError("answered /models without a list `data`")
    models: dict[str, ModelCard] = {}
    for card in data:
        limit = card.get("max_model_len")
        models[str(card.get("id"))] = ModelCard(
            limit if _is_count(limit) else None,
            adapter=bool(card.get("parent")),
            owner=str(card.get("owned_by", "")),
        )
    return models


def read_tokens(payload: Any) -> list[int]:
    """Token ids from the answer to ``POST /tokenize``.

    Raises:
        WireError: the answer is not a list of token ids.
    """
    tokens = payload.get("tokens") if isinstance(payload, dict) else None
    if not isinstance(tokens, list) or not all(_is_count(token) for token in tokens):
        raise WireError("answered /tokenize without a list `tokens`")
    return tokens


def read_text(payload: Any) -> str:
    """The text from the answer to ``POST /detokenize``.

    Raises:
        WireError: the answer has no text.
    """
    text = payload.get("prompt") if isinstance(payload, dict) else None
    if not isinstance(text, str):
        raise WireError("answered /detokenize without a text `prompt`")
    return text


def error_text(payload: Any) -> str:
    """A server's own error message, in OpenAI's format or another, cut to 300 characters."""
    error = payload.get("error", payload) if isinstance(payload, dict) else payload
    if isinstance(error, dict):
        error = error.get("message", error)
    return f"{error}"[:300]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise WireError(f"sent {value!r:.40} as a log-probability")
    return float(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
