"""Drawings: candidates of one policy with one sampling, drawn once, from which settings are replayed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbon.errors import DataError
from vbon.storage.atomic import read_errors, write_text

Float = NDArray[np.float64]
# What changes the form of the kept files; others are refused, not read wrongly.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Drawing:
    """A way to draw candidates; all else is replayed from them."""

    policy: str
    temperature: float
    top_p: float
    max_tokens: int
    top_k: int = 0

    @property
    def key(self) -> str:
        """A short name for files and seeds."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling fields of a request."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_tokens": self.max_tokens,
        }

    @property
    def reshaped(self) -> bool:
        """True if candidates come from another distribution than the policy's own."""
        return (self.temperature, self.top_p, self.top_k) != (1.0, 1.0, 0)

    @property
    def label(self) -> str:
        """The drawing for people, such as ``vbon at temperature 0.7, top_p 0.9``."""
        top_k = f", top_k {self.top_k}" if self.top_k else ""
        top_p = f", top_p {self.top_p:.3g}" if self.top_p != 1 else ""
        return f"{self.policy} at temperature {self.temperature:.3g}{top_p}{top_k}"


@dataclass(frozen=True, slots=True)
class PromptCandidates:
    """The N scored candidates of one prompt, in the order of their indices.

    Attributes:
        seed: the seed of the request that drew them.
        rewards: NaN where a candidate could not be scored.
        gold: gold rewards, NaN as above; all NaN without a gold reward model.
        lengths: numbers of tokens.
        logprobs: log-probability of each completion as the engine tells it, nats; NaN if it tells none.
    """

    seed: int
    rewards: Float
    gold: Float
    lengths: Float
    logprobs: Float
    texts: tuple[str, ...]

    @property
    def count(self) -> int:
        """N."""
        return len(self.rewards)

    def first(self, count: int) -> PromptCandidates:
        """The first candidates, which a request for so many would have drawn."""
        return PromptCandidates(
            self.seed,
            self.rewards[:count],
            self.gold[:count],
            self.lengths[:count],
            self.logprobs[:count],
            self.texts[:count],
        )


@dataclass(frozen=True, slots=True)
class Drawn:
    """The candidates of one drawing for all prompts of a part.

    Attributes:
        prompts: by prompt, in order; ``None`` where the request failed.
        errors: numbers of failed requests by kind.
        seconds: how long the drawing took.
    """

    drawing: Drawing
    n: int
    prompts: tuple[PromptCandidates | None, ...]
    errors: Mapping[str, int]
    seconds: float

    @property
    def known(self) -> list[tuple[int, PromptCandidates]]:
        """The prompts that were answered, with their indices."""
        return [(i, one) for i, one in enumerate(self.prompts) if one is not None]

    @property
    def unscored(self) -> int:
        """The number of candidates without a reward."""
        return int(sum(np.isnan(one.rewards).sum() for _, one in self.known))

    @property
    def has_gold(self) -> bool:
        """True if any candidate has a gold reward."""
        return any(not np.isnan(one.gold).all() for _, one in self.known)


def candidates_of(answer: Mapping[str, Any], seed: int) -> PromptCandidates:
    """The candidates of an answer of ``POST /generate`` with ``return_candidates``.

    Raises:
        KeyError, TypeError, ValueError: the answer has another form.
    """
    found = sorted(answer["candidates"], key=lambda one: one["index"])
    return PromptCandidates(
        seed=seed,
        rewards=_floats([one["reward"] for one in found]),
        gold=_floats([one.get("gold_reward") for one in found]),
        lengths=_floats([one["num_tokens"] for one in found]),
        logprobs=_floats([one.get("cumulative_logprob") for one in found]),
        texts=tuple(str(one["text"]) for one in found),
    )


def write_drawn(path: Path, drawn: Drawn, identity: Mapping[str, Any]) -> None:
    """Keep a drawing, so that a run that goes on does not draw it again.

    Args:
        identity: models and prompts that it depends on.
    """
    prompts = [None if one is None else _record(one) for one in drawn.prompts]
    content = {
        "version": VERSION,
        "identity": dict(identity),
        "drawing": asdict(drawn.drawing),
        "n": drawn.n,
        "errors": dict(drawn.errors),
        "seconds": drawn.seconds,
        "prompts": prompts,
    }
    write_text(path, json.dumps(content, allow_nan=False) + "\n")


def read_drawn(path: Path, identity: Mapping[str, Any]) -> Drawn | None:
    """A kept drawing; ``None`` if there is none, or one of other models, prompts or of another version.

    Raises:
        DataError: the file cannot be read.
    """
    if not path.is_file():
        return None
    with read_errors(path):
        text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        if content["version"] != VERSION or content["identity"] != dict(identity):
            return None
        return Drawn(
            Drawing(**content["drawing"]),
            content["n"],
            tuple(None if one is None else _candidates(one) for one in content["prompts"]),
            content["errors"],
            content["seconds"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it, and it is drawn again") from error


def _record(one: PromptCandidates) -> dict[str, Any]:
    return {
        "seed": one.seed,
        "rewards": _listed(one.rewards),
        "gold": _listed(one.gold),
        "lengths": _listed(one.lengths),
        "logprobs": _listed(one.logprobs),
        "texts": list(one.texts),
    }


def _candidates(record: Mapping[str, Any]) -> PromptCandidates:
    arrays = {name: _floats(record[name]) for name in ("rewards", "gold", "lengths", "logprobs")}
    return PromptCandidates(seed=record["seed"], texts=tuple(record["texts"]), **arrays)


def _floats(values: Sequence[float | None]) -> Float:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _listed(values: Float) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
