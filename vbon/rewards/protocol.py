"""The interface of a reward model, shared by the service and by training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vbon.errors import RewardError
from vbon.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Scorable:
    """A prompt and one completion of it."""

    prompt: Prompt
    completion: str


class RewardModel(Protocol):
    """Scores completions. Its methods block and are called from one worker thread at a time.

    Attributes:
        name: the name shown to users: a path, an import path or a URL.
        revision: a content fingerprint if there is one, else a fixed word such as ``remote``.
    """

    name: str
    revision: str

    def load(self) -> None:
        """Load the model, so that :meth:`score` can be called.

        Raises:
            CheckpointError: the model cannot be used.
        """

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """One raw reward per item; higher is better, no sigmoid, ``None`` for an item without a score.

        Raises:
            RewardError: the whole batch failed.
        """

    def close(self) -> None:
        """Release the resources taken by :meth:`load`."""


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """The settings given to every kind of reward model, which uses those it needs.

    Attributes:
        trust_remote_code: run code that comes with a checkpoint.
        batch_size: items per forward pass or remote call.
        timeout_s: limit of one remote call.
        threads: CPU threads of a local model; ``None`` keeps the default.
        quotes_servers: whether errors contain what a server says, which may repeat a text that it scored.
    """

    trust_remote_code: bool = False
    batch_size: int = 64
    timeout_s: float = 30.0
    threads: int | None = None
    quotes_servers: bool = True


class RewardOpener(Protocol):
    """A function or class that opens the reward models of one scheme."""

    def __call__(self, argument: str, options: RewardOptions) -> RewardModel:
        """Open the model without loading it; ``argument`` is the text after ``SCHEME:``.

        The model must be picklable, since the service runs it in a child process.

        Raises:
            CheckpointError: the argument does not name a model.
        """


def checked_scores(values: Iterable[object], expected: int, source: str) -> list[float | None]:
    """Check scores from outside code: one float per item, with NaN and infinities as ``None``.

    Errors name the type of a value and not the value, which may be a part of some prompt.

    Raises:
        RewardError: the count is wrong, or a value is not a number.
    """
    scores: list[float | None] = []
    for value in values:
        if value is None:
            scores.append(None)
            continue
        number = _number(value)
        if number is None:
            raise RewardError(
                f"{source} returned a value of type {type(value).__name__}, which is not a number"
            )
        scores.append(number if math.isfinite(number) else None)
    if len(scores) != expected:
        raise RewardError(f"{source} returned {len(scores)} scores for {expected} items")
    return scores


def _number(value: object) -> float | None:
    """The value as a float, or ``None`` if it is not a number; infinite if it is too large for a float."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except Exception:  # the conversion is code of whoever made the value
        return None
