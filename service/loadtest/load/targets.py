"""What to ask a server, and how to read its answers: our own API, or OpenAI's completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from service.loadtest.observation import Observation
from service.loadtest.plan import Variant


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        target: path and query.
        streamed: whether the answer comes as server-sent events.
    """

    target: str
    body: dict[str, Any]
    streamed: bool


class AnswerError(Exception):
    """An answer that is one of failure, or not what was asked for; its text is the error's kind."""


@dataclass(slots=True)
class Reading:
    """State of one streamed answer.

    Attributes:
        answer: the message that tells what it cost, once it came.
    """

    answer: dict[str, Any] | None = None
    ended: bool = False


class Target(Protocol):
    """An API."""

    def ask(self, variant: Variant, prompt: str) -> Ask:
        """The request of a variant."""

    def event(self, name: str, data: Any, reading: Reading) -> bool:
        """Take an event into account; whether it carried text.

        Raises:
            AnswerError: it tells of a failure.
        """

    def read(self, answer: dict[str, Any], into: Observation) -> None:
        """Fill in tokens and timings from the whole answer.

        Raises:
            AnswerError: it lacks them.
        """


@dataclass(frozen=True, slots=True)
class NativeTarget:
    """``POST /generate``. No seed is sent: engines pay for one by the request."""

    max_tokens: int
    temperature: float
    ignore_eos: bool
    stream: bool

    def ask(self, variant: Variant, prompt: str) -> Ask:
        """A single sample is not scored, so that it does not pay for it."""
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "ignore_eos": self.ignore_eos,
        }
        if variant.reranks:
            return Ask(native_path(variant), {**body, "n": variant.n}, streamed=False)
        return Ask(
            native_path(variant), {**body, "score": False, "stream": self.stream}, self.stream
        )

    def event(self, name: str, data: Any, reading: Reading) -> bool:
        """``token``, ``answer``, or something to pass over."""
        if name == "answer":
            reading.answer, reading.ended = data, True
        elif name == "error" or (isinstance(data, dict) and "error" in data):
            raise AnswerError(f"stream: {data['error']['type']}")
        return name == "token"

    def read(self, answer: dict[str, Any], into: Observation) -> None:
        """Its usage and timings."""
        try:
            usage, timings = answer["usage"], answer["timings_ms"]
            into.generated_tokens = usage["generated_tokens"]
            into.returned_tokens = usage["returned_tokens"]
            into.queue_ms, into.decode_ms = timings["queue"], timings["decode"]
            into.rerank_ms, into.scoring_ms = timings["rerank"], timings["scoring"]
        except (KeyError, TypeError) as error:
            raise AnswerError("no answer of this service") from error


@dataclass(frozen=True, slots=True)
class OpenAiTarget:
    """``POST /v1/completions``, streamed unless told otherwise; N is not part of that API."""

    max_tokens: int
    temperature: float
    ignore_eos: bool
    stream: bool

    def ask(self, variant: Variant, prompt: str) -> Ask:
        """A completion of the model of that name."""
        body: dict[str, Any] = {
            "model": variant.name,
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": self.stream,
        }
        if self.ignore_eos:  # an extension: other servers may refuse what they do not know
            body["ignore_eos"] = True
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        return Ask("/v1/completions", body, self.stream)

    def event(self, name: str, data: Any, reading: Reading) -> bool:
        """A chunk, the usage, or the end."""
        if data == "[DONE]":
            reading.ended = True
            return False
        if "error" in data:
            raise AnswerError(f"stream: {data['error'].get('type', 'error')}")
        reading.answer = (reading.answer or {}) | {
            key: data[key] for key in ("usage", "vbon") if data.get(key)
        }
        return any(choice.get("text") for choice in data.get("choices", ()))

    def read(self, answer: dict[str, Any], into: Observation) -> None:
        """Its usage; with this service behind it also what it generated, and timings."""
        try:
            into.returned_tokens = answer["usage"]["completion_tokens"]
        except (KeyError, TypeError) as error:
            raise AnswerError("no usage in the answer") from error
        report = answer.get("vbon")
        into.generated_tokens = into.returned_tokens
        if report:
            timings = report["timings_ms"]
            into.generated_tokens = report["generated_tokens"]
            into.queue_ms, into.decode_ms = timings["queue"], timings["decode"]
            into.rerank_ms, into.scoring_ms = timings["rerank"], timings["scoring"]


def native_path(variant: Variant) -> str:
    """Path and query of a variant on our own API."""
    policy = "" if variant.policy is None else f"&policy={variant.policy}"
    return f"/generate?mode={variant.mode}{policy}"
