"""What goes over the wire to an OpenAI-compatible server, and what may come back.

Everything here is a pure function of JSON; an answer that is not exactly what was asked for is a
:class:`WireError` that says what is wrong with it, so that nothing half understood is passed on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vbon.engine.protocol import Candidate, FinishReason, Partial, Sampling, candidate_seed
from vbon.http.body import WireError

# Stands for a token whose id the server does not tell; no vocabulary has it.
UNKNOWN_TOKEN = -1
_FINISHED: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
_TOKEN_ID = "token_id:"
# What `vllm serve` would otherwise take from the model's generation_config.json: a policy sampled
# with somebody's repetition penalty is another policy.
_PLAIN: dict[str, Any] = {
    "n": 1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


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
        "stop": list(sampling.stop),
        "stream": stream,
        # Asked for even when nobody looks: the answer's parts are checked against each other. The
        # sampled token's own comes with 0 as well, but some servers take 0 for "none".
        "logprobs": 1,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    if sampling.seed is not None:
        body["seed"] = candidate_seed(sampling.seed, index)
    return body | _turn(sampling.priority)


def _turn(priority: int) -> dict[str, int]:
    """A field of vLLM's, which other servers need not know: only where it says something."""
    return {"priority": priority} if priority else {}


def scoring_body(model: str, token_ids: list[int], priority: int) -> dict[str, Any]:
    """The body of ``POST /completions`` that asks how likely ``token_ids`` are."""
    asked = {"model": model, "prompt": token_ids, "max_tokens": 1, "prompt_logprobs": 0}
    return {**_PLAIN, **asked, **_turn(priority), "temperature": 1.0}


class Growth:
    """A candidate as its pieces come: one for a whole answer, one a step for a stream.

    Attributes:
        finish_reason: set by the piece that ends it.
        ending: the id of the token that ended it and has no text, where the server tells.
    """

    def __init__(self, sampling: Sampling, index: int) -> None:
        self._sampling, self._index = sampling, index
        self.text = ""
        self.token_ids: tuple[int, ...] = ()
        self.token_logprobs: tuple[float, ...] = ()
        self.finish_reason: FinishReason | None = None
        self.ending: int | None = None

    def add(self, payload: Any) -> int | None:
        """Take one JSON answer or event; ``usage.completion_tokens`` if it tells that.

        Raises:
            WireError: it is not a piece of this candidate.
        """
        if not isinstance(payload, dict):
            raise WireError(f"answered {type(payload).__name__} where an object was expected")
        if payload.get("error"):
            raise WireError(f"failed: {error_text(payload)}")
        choices = payload.get("choices")
        usage = payload.get("usage")
        if not isinstance(choices, list):
            raise WireError("answered without `choices`")
        if len(choices) > 1 or (not choices and not isinstance(usage, dict)):
            raise WireError(f"answered {len(choices)} choices where 1 was asked")
        for choice in choices:
            self._add_choice(choice)
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if count is not None and not _is_count(count):
            raise WireError(f"counts {count!r:.40} completion tokens")
        return count

    def _add_choice(self, choice: Any) -> None:
        if self.finish_reason is not None:
            raise WireError("went on after the candidate had ended")
        text = choice.get("text") if isinstance(choice, dict) else None
        if not isinstance(text, str):
            raise WireError("answered a choice without `text`")
        reason = choice.get("finish_reason")
        if reason is not None and reason not in _FINISHED:
            raise WireError(f"ended the candidate without an answer ({reason!r:.40})")
        logprobs = _token_logprobs(choice.get("logprobs"), text)
        ids = _token_ids(choice, len(logprobs))
        self.text += text
        self.token_ids += ids
        self.token_logprobs += logprobs
        if reason is not None:
            self.finish_reason = _FINISHED[reason]
        # A server that says why it stopped, and names no stop string, stopped at a token.
        if (
            reason == "stop"
            and self.token_ids
            and not isinstance(choice.get("stop_reason", ""), str)
        ):
            self.ending = self.token_ids[-1]

    def check_whole(self, counted: int | None) -> None:
        """Whether this is a whole candidate, of as many tokens as the server counted.

        Raises:
            WireError: it is half of one, or the numbers contradict each other.
        """
        count, limit = len(self.token_ids), self._sampling.max_tokens
        if self.finish_reason is None:
            raise WireError(f"ended its answer after {count} tokens without a finish_reason")
        if counted is not None and counted != count:
            raise WireError(f"counts {counted} completion tokens and gave {count}")
        if count > limit or (count < limit and self.finish_reason == "length"):
            raise WireError(f"ended at {count} tokens by length where max_tokens is {limit}")
        if self.text and not count:
            raise WireError("gave text without tokens")

    def candidate(self) -> Candidate:
        """The finished candidate."""
        assert self.finish_reason is not None
        return Candidate(
            self._index,
            self.text,
            self.token_ids,
            self.finish_reason,
            self.token_logprobs if self._sampling.logprobs else None,
        )

    def partial(self) -> Partial:
        """What there is by now."""
        logprobs = self.token_logprobs if self._sampling.logprobs else None
        return Partial(self._index, self.text, self.token_ids, self.finish_reason, logprobs)


def _token_logprobs(logprobs: Any, text: str) -> tuple[float, ...]:
    if logprobs is None and not text:
        return ()  # a last piece that only says why it ended
    found = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(found, list):
        raise WireError("gave no `logprobs.token_logprobs`, which every candidate needs")
    return tuple(_logprob(value) for value in found)


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
        raise WireError("gave `token_ids` that are no list of token ids")
    if len(ids) != count:
        raise WireError(f"gave {len(ids)} token ids and {count} log-probabilities")
    return tuple(ids)


def read_prompt_logprobs(payload: Any, token_ids: Sequence[int], first: int) -> list[float]:
    """Nats of ``token_ids[first:]``, each given what precedes it.

    Raises:
        WireError: the server does not tell, or tells of other tokens.
    """
    choices = payload.get("choices") if isinstance(payload, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise WireError("answered without its one choice")
    positions = choices[0].get("prompt_logprobs")
    if positions is None:
        raise WireError(
            "gave no `prompt_logprobs`: scoring given tokens needs this extension of vLLM's"
        )
    if not isinstance(positions, list) or len(positions) != len(token_ids):
        raise WireError(f"gave prompt_logprobs of another length than {len(token_ids)}")
    found = []
    for token, position in zip(token_ids[first:], positions[first:], strict=True):
        entry = position.get(str(token)) if isinstance(position, dict) else None
        if not isinstance(entry, dict):
            raise WireError(f"gave prompt_logprobs without token {token}")
        found.append(_logprob(entry.get("logprob")))
    return found


def read_models(payload: Any) -> dict[str, int | None]:
    """Model ids of ``GET /models``, each with its context in tokens where the server tells.

    Raises:
        WireError: not a list of models.
    """
    data = payload.get("data") if isinstance(payload, dict) else None
    if not isinstance(data, list) or not all(isinstance(card, dict) for card in data):
        raise WireError("answered /models without a list `data`")
    models: dict[str, int | None] = {}
    for card in data:
        limit = card.get("max_model_len")
        models[str(card.get("id"))] = limit if _is_count(limit) else None
    return models


def read_tokens(payload: Any) -> list[int]:
    """The ids that ``POST /tokenize`` answers.

    Raises:
        WireError: not a list of ids.
    """
    tokens = payload.get("tokens") if isinstance(payload, dict) else None
    if not isinstance(tokens, list) or not all(_is_count(token) for token in tokens):
        raise WireError("answered /tokenize without a list `tokens`")
    return tokens


def read_text(payload: Any) -> str:
    """The text that ``POST /detokenize`` answers.

    Raises:
        WireError: not a text.
    """
    text = payload.get("prompt") if isinstance(payload, dict) else None
    if not isinstance(text, str):
        raise WireError("answered /detokenize without a text `prompt`")
    return text


def error_text(payload: Any) -> str:
    """What a server says of its own error, in OpenAI's shape or any other, cut short."""
    error = payload.get("error", payload) if isinstance(payload, dict) else payload
    if isinstance(error, dict):
        error = error.get("message", error)
    return f"{error}"[:300]


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise WireError(f"gave {value!r:.40} as a log-probability")
    return float(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
