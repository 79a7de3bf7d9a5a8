"""Formats in which servers take texts and answer rewards; pure functions of JSON.

The requests and answers are those of the servers' sources: OpenRLHF ``serve_rm``, vLLM 0.32
(``entrypoints/pooling``), text-embeddings-inference (``router/src/http/types.rs``) and Infinity 0.0.78
(``fastapi_schemas/pymodels.py``). Some servers apply a sigmoid unless they are asked not to; every format
asks for raw scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vbon.http.body import WireError
from vbon.prompts import finished_conversation
from vbon.rewards.protocol import Scorable, checked_scores

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScoringCall:
    """One request to a server.

    Attributes:
        body: its JSON.
        positions: the positions of its items in the batch.
    """

    body: Body
    positions: list[int]


class HeadError(Exception):
    """A server's model has not exactly one output; the message, which follows the server's name, says so."""


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """Settings that a server needs, found out at the start.

    Attributes:
        model: the model's name at the server; ``None`` leaves it out.
        chats: whether the server renders chats with the reward model's own template.
        special_tokens: whether the tokenizer's special tokens are asked for around a rendered chat, because
            the template does not write them; a classifier here adds them then.
        raw: whether raw scores are asked for; ``False`` only to see whether the server makes a difference.
    """

    model: str | None = None
    chats: bool = False
    special_tokens: bool = False
    raw: bool = True


class ServerFormat(ABC):
    """The requests and answers of one kind of server.

    Attributes:
        title: its name in messages.
        path: the last part of its usual URL.
        most_items: the most texts in one request; ``None`` for any number.
        rescales: whether the server may apply a sigmoid.
        renders_chats: whether the server may have a chat template.
        takes_model: whether requests name the model.
    """

    title: ClassVar[str]
    path: ClassVar[str]
    most_items: ClassVar[int | None] = None
    rescales: ClassVar[bool] = True
    renders_chats: ClassVar[bool] = False
    takes_model: ClassVar[bool] = False

    @abstractmethod
    def calls(self, items: Sequence[Scorable], options: FormatOptions) -> list[ScoringCall]:
        """The requests that score a batch."""

    @abstractmethod
    def read(self, answer: Any, expected: int) -> list[Any]:
        """The scores in the answer to one call, in the order of its items.

        Raises:
            WireError: the answer has another form.
            HeadError: the answer has several numbers for each text.
        """


class PromptsAndCompletions(ServerFormat):
    """The project's own format: ``{"prompts", "completions"}`` in, ``{"rewards"}`` out."""

    title, path, rescales = "vbon", "score", False

    def calls(self, items: Sequence[Scorable], options: FormatOptions) -> list[ScoringCall]:
        """One request for the whole batch."""
        body = {
            "prompts": [item.prompt.key for item in items],
            "completions": [item.completion for item in items],
        }
        return [_whole(body, items)]

    def read(self, answer: Any, expected: int) -> list[Any]:
        """The list ``rewards``."""
        return _list_in(answer, "rewards")


class OpenRlhf(ServerFormat):
    """OpenRLHF's ``serve_rm``: whole texts as ``query``, and ``prompts``, in; ``{"rewards"}`` out."""

    title, path, rescales = "OpenRLHF", "get_reward", False

    def calls(self, items: Sequence[Scorable], options: FormatOptions) -> list[ScoringCall]:
        """One request for the whole batch."""
        body = {"query": _texts(items), "prompts": [item.prompt.key for item in items]}
        return [_whole(body, items)]

    def read(self, answer: Any, expected: int) -> list[Any]:
        """The list ``rewards``, whose elements may be lists of one number."""
        return [
            _only(value) if isinstance(value, list) else value
            for value in _list_in(answer, "rewards")
        ]


class Classify(ServerFormat):
    """``/classify`` of vLLM and of Infinity."""

    title, path = "vLLM or Infinity", "classify"
    renders_chats, takes_model = True, True

    def calls(self, items: Sequence[Scorable], options: FormatOptions) -> list[ScoringCall]:
        """One request for the whole batch; with a chat template, one for each item."""
        plain = _scaled(options)
        if not options.chats:
            return [_whole({"input": _texts(items), **plain}, items)]
        if options.special_tokens:
            plain["add_special_tokens"] = True
        return [
            ScoringCall(
                {"messages": finished_conversation(item.prompt, item.completion), **plain},
                [position],
            )
            for position, item in enumerate(items)
        ]

    def read(self, answer: Any, expected: int) -> list[Any]:
        """``probs`` of each element of ``data`` (vLLM), or the score of its only label (Infinity)."""
        found = []
        for element in _ordered(_list_in(answer, "data")):
            if isinstance(element, dict) and isinstance(element.get("probs"), list):
                found.append(_only(element["probs"]))
            elif isinstance(element, list):
                found.append(_field(_only(element), "score"))
            else:
                raise WireError("sent `data` without `probs` or labels")
        return found


class Pooling(Classify):
    """``/pooling`` of vLLM, for models that it does not serve as classifiers."""

    title, path = "vLLM", "pooling"

    def read(self, answer: Any, expected: int) -> list[Any]:
        """The number of each element of ``data``; for one number per token, that of the last token."""
        found = []
        for element in _ordered(_list_in(answer, "data")):
            numbers = element.get("data") if isinstance(element, dict) else None
            if isinstance(numbers, list) and numbers and isinstance(numbers[-1], list):
                numbers = numbers[-1]
            if not isinstance(numbers, list):
                raise WireError("sent `data` without numbers")
            found.append(_only(numbers))
        return found


class Score(ServerFormat):
    """``/score`` of vLLM, for models that compare two texts."""

    title, path, takes_model = "vLLM", "score", True

    def calls(self, items: Sequence[Scorable], options: FormatOptions) -> list[ScoringCall]:
        """One request for the whole batch, with prompts and completions as pairs."""
        body = {
            "text_1": [item.prompt.key for item in items],
            "text_2": [item.completion for item in items],
            "use_activation": not options.raw,
        }
        return [_whole(_named(options) | body, items)]

    def read(self, answer: Any, expected: int) -> list[Any]:
        """``score`` of each element of ``data``."""
        return [_field(element, "score") for element in _ordered(_list_in(answer, "data"))]


class Rerank(ServerFormat):
    """``/rerank`` of vLLM, Infinity and others that follow Cohere, one request for each prompt."""

    title, path, takes_model = "vLLM or Infinity", "rerank", True

    def calls(self, items: Sequence[Scorable], options: FormatOptions) -> list[ScoringCall]:
        """One request for each prompt, with its completions as documents."""
        plain = _scaled(options)
        return [
            ScoringCall(
                {"query": query, "documents": [items[i].completion for i in positions], **plain},
                positions,
            )
            for query, positions in _by_prompt(items).items()
        ]

    def read(self, answer: Any, expected: int) -> list[Any]:
        """``relevance_score`` of each element of ``results``, or of ``data`` in older versions."""
        name = "data" if isinstance(answer, dict) and "results" not in answer else "results"
        return _by_index(_list_in(answer, name), "relevance_score", expected)


class TeiRerank(ServerFormat):
    """``/rerank`` of text-embeddings-inference, one request for each prompt."""

    title, path, most_items = "text-embeddings-inference", "rerank", 32

    def calls(self, items: Sequence[Scorable], options: FormatOptions) -> list[ScoringCall]:
        """One request for each prompt, with its completions as texts."""
        return [
            ScoringCall(
                {
                    "query": query,
                    "texts": [items[i].completion for i in positions],
                    "raw_scores": options.raw,
                },
                positions,
            )
            for query, positions in _by_prompt(items).items()
        ]

    def read(self, answer: Any, expected: int) -> list[Any]:
        """``score`` of each element, in the order of their ``index``."""
        if not isinstance(answer, list):
            raise WireError("sent a response that is not a list")
        return _by_index(answer, "score", expected)


class TeiPredict(ServerFormat):
    """``/predict`` of text-embeddings-inference, for classifiers."""

    title, path, most_items = "text-embeddings-inference", "predict", 32

    def calls(self, items: Sequence[Scorable], options: FormatOptions) -> list[ScoringCall]:
        """One request for the whole batch."""
        body = {"inputs": [[text] for text in _texts(items)], "raw_scores": options.raw}
        return [_whole(body, items)]

    def read(self, answer: Any, expected: int) -> list[Any]:
        """The score of the only label of each text."""
        if not isinstance(answer, list) or not all(isinstance(row, list) for row in answer):
            raise WireError("sent a response that is not a list of lists")
        return [_field(_only(labels), "score") for labels in answer]


OWN = PromptsAndCompletions()
# In this order they are tried at a URL without a path, and at a path of another name.
FORMATS: tuple[ServerFormat, ...] = (
    OWN, OpenRlhf(), Classify(), Pooling(), TeiPredict(), TeiRerank(), Rerank(), Score(),
)  # fmt: skip


def placed_scores(
    kind: ServerFormat, calls: Sequence[ScoringCall], answers: Sequence[Any], source: str
) -> list[float | None]:
    """The scores in the answers to the calls of a batch, in the order of the batch's items.

    Raises:
        WireError: an answer has another form.
        HeadError: an answer has several numbers for each text.
        RewardError: a score is not a number; the message begins with ``source``.
    """
    scores: dict[int, float | None] = {}
    for call, answer in zip(calls, answers, strict=True):
        values = kind.read(answer, len(call.positions))
        checked = checked_scores(values, len(call.positions), source)
        scores.update(zip(call.positions, checked, strict=True))
    return [scores[position] for position in sorted(scores)]


def _whole(body: Body, items: Sequence[Scorable]) -> ScoringCall:
    return ScoringCall(body, list(range(len(items))))


def _named(options: FormatOptions) -> Body:
    return {} if options.model is None else {"model": options.model}


def _scaled(options: FormatOptions) -> Body:
    """The model, and the scale in the words of vLLM and of Infinity."""
    return _named(options) | {"use_activation": not options.raw, "raw_scores": options.raw}


def _texts(items: Sequence[Scorable]) -> list[str]:
    """Prompts and completions as one text each, as a reward model without a chat template sees them."""
    return [item.prompt.key + item.completion for item in items]


def _by_prompt(items: Sequence[Scorable]) -> dict[str, list[int]]:
    """The positions of the items of each prompt."""
    found: dict[str, list[int]] = {}
    for position, item in enumerate(items):
        found.setdefault(item.prompt.key, []).append(position)
    return found


def _list_in(answer: Any, name: str) -> list[Any]:
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise WireError(f"sent a response without a list `{name}`")
    return found


def _ordered(elements: list[Any]) -> list[Any]:
    """The elements by their ``index``, if they have one."""
    if all(isinstance(e, dict) and isinstance(e.get("index"), int) for e in elements):
        return sorted(elements, key=lambda element: int(element["index"]))
    return elements


def _by_index(elements: list[Any], name: str, expected: int) -> list[Any]:
    """The field ``name`` of the elements, which come by rank, in the order of their ``index``."""
    found: dict[int, Any] = {}
    for element in elements:
        index = _field(element, "index")
        if not isinstance(index, int) or not 0 <= index < expected or index in found:
            raise WireError(f"sent {index!r:.40} as the index of one of {expected} texts")
        found[index] = _field(element, name)
    return [found[index] for index in sorted(found)]


def _field(element: Any, name: str) -> Any:
    if not isinstance(element, Mapping) or name not in element:
        raise WireError(f"sent an element without `{name}`")
    return element[name]


def _only(values: list[Any]) -> Any:
    if len(values) != 1:
        raise HeadError(
            f"answers {len(values)} numbers for each text; a reward model has exactly one output "
            "(num_labels = 1)"
        )
    return values[0]
