"""Builds requests and reads answers, for this service's own API and for OpenAI's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from service.loadtest.observation import Observation
from service.loadtest.plan import Variant
from vbon.prompt_files import prompt_record
from vbon.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        target: path and query of the URL.
        streamed: True if the answer comes as server-sent events.
    """

    target: str
    body: dict[str, Any]
    streamed: bool


# A server fills what a request leaves out from the model's generation_config.json, and would then decode
# another distribution. These fields are OpenAI's; top_k, min_p and a repetition penalty are not, so other
# servers may refuse them.
_NEUTRAL = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class AnswerError(Exception):
    """The answer reports a failure or is malformed; the message is the kind of the error."""


@dataclass(slots=True)
class Reading:
    """The state of one streamed answer.

    Attributes:
        answer: the message with usage and timings; ``None`` until it has arrived.
    """

    answer: dict[str, Any] | None = None
    ended: bool = False


class Target(Protocol):
    """An API of a server under test."""

    def ask(self, variant: Variant, prompt: Prompt) -> Ask:
        """The request to a variant."""

    def event(self, name: str, data: Any, reading: Reading) -> bool:
        """Process one event; returns True if it carried text.

        Raises:
            AnswerError: the event reports a failure.
        """

    def read(self, answer: dict[str, Any], into: Observation) -> None:
        """Fill in tokens and timings from the whole answer.

        Raises:
            AnswerError: the answer does not contain them.
        """


@dataclass(frozen=True, slots=True)
class NativeTarget:
    """The API of this service, ``POST /generate``; no seed is sent, because seeds slow engines down.

    Attributes:
        collected: whether the server would keep answers for training, which are then forbidden to be kept.
    """

    max_tokens: int
    temperature: float
    ignore_eos: bool
    stream: bool
    collected: bool = False

    def ask(self, variant: Variant, prompt: Prompt) -> Ask:
        """The request to a variant; single samples are not scored, so that scoring does not slow them."""
        body: dict[str, Any] = {
            **prompt_record(prompt),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "ignore_eos": self.ignore_eos,
        }
        if self.collected:
            body["store"] = False
        if variant.reranks:
            return Ask(native_path(variant), {**body, "n": variant.n}, streamed=False)
        return Ask(
            native_path(variant), {**body, "score": False, "stream": self.stream}, self.stream
        )

    def event(self, name: str, data: Any, reading: Reading) -> bool:
        """Process a ``token`` or ``answer`` event; other events are ignored."""
        if name == "answer":
            reading.answer, reading.ended = data, True
        elif name == "error" or (isinstance(data, dict) and "error" in data):
            raise AnswerError(f"stream: {data['error']['type']}")
        return name == "token"

    def read(self, answer: dict[str, Any], into: Observation) -> None:
        """Fill in the usage and the timings."""
        try:
            usage, timings = answer["usage"], answer["timings_ms"]
            into.generated_tokens = usage["generated_tokens"]
            into.returned_tokens = usage["returned_tokens"]
            into.truncated = is_truncated(answer.get("finish_reason"))
            into.queue_ms, into.decode_ms = timings["queue"], timings["decode"]
            into.rerank_ms, into.scoring_ms = timings["rerank"], timings["scoring"]
        except (KeyError, TypeError) as error:
            raise AnswerError("not an answer of this service") from error


@dataclass(frozen=True, slots=True)
class OpenAiTarget:
    """OpenAI's API, ``/v1/completions`` for texts and ``/v1/chat/completions`` for chats, without N."""

    max_tokens: int
    temperature: float
    ignore_eos: bool
    stream: bool

    def ask(self, variant: Variant, prompt: Prompt) -> Ask:
        """The request for a completion of the model that the variant names."""
        body: dict[str, Any] = {
            "model": variant.name,
            **prompt_record(prompt),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": self.stream,
            **_NEUTRAL,
        }
        if self.ignore_eos:  # an extension of the API, which other servers may reject
            body["ignore_eos"] = True
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        path = "/v1/completions" if prompt.text is not None else "/v1/chat/completions"
        return Ask(path, body, self.stream)

    def event(self, name: str, data: Any, reading: Reading) -> bool:
        """Process a chunk, the usage, or the end."""
        if data == "[DONE]":
            reading.ended = True
            return False
        if "error" in data:
            raise AnswerError(f"stream: {data['error'].get('type', 'error')}")
        reading.answer = (reading.answer or {}) | {
            key: data[key] for key in ("usage", "vbon") if data.get(key)
        }
        choices = data.get("choices", ())
        for choice in choices:
            if choice.get("finish_reason"):
                reading.answer["finish_reason"] = choice["finish_reason"]
        return any(
            choice.get("text") or (choice.get("delta") or {}).get("content") for choice in choices
        )

    def read(self, answer: dict[str, Any], into: Observation) -> None:
        """Fill in the usage, and generated tokens and timings if the server is this service."""
        try:
            into.returned_tokens = answer["usage"]["completion_tokens"]
        except (KeyError, TypeError) as error:
            raise AnswerError("no usage in the answer") from error
        report = answer.get("vbon")
        into.generated_tokens = into.returned_tokens
        whole = (answer.get("choices") or [{}])[0]
        into.truncated = is_truncated(answer.get("finish_reason") or whole.get("finish_reason"))
        if report:
            timings = report["timings_ms"]
            into.generated_tokens = report["generated_tokens"]
            into.queue_ms, into.decode_ms = timings["queue"], timings["decode"]
            into.rerank_ms, into.scoring_ms = timings["rerank"], timings["scoring"]


def is_truncated(finish_reason: str | None) -> bool | None:
    """True if the token limit cut an answer off; ``None`` if the server does not tell how it ended."""
    return None if finish_reason is None else finish_reason == "length"


def native_path(variant: Variant) -> str:
    """Path and query of a variant on this service's own API."""
    policy = "" if variant.policy is None else f"&policy={variant.policy}"
    return f"/generate?mode={variant.mode}{policy}"
