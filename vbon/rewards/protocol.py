"""What anything that scores completions looks like to the service and to training."""

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
    """Scores completions; blocking, called from one worker thread at a time.

    Attributes:
        name: what users see: a path, an import path or a URL.
        revision: content fingerprint where there is one, else what the source says of itself.
    """

    name: str
    revision: str

    def load(self) -> None:
        """Do the heavy part of getting ready.

        Raises:
            CheckpointError: if the model cannot be used.
        """

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """One raw reward per item, higher is better, no sigmoid; ``None`` where it has no score.

        Raises:
            RewardError: if the whole batch failed.
        """

    def close(self) -> None:
        """Release what :meth:`load` took."""


def checked_scores(values: Iterable[object], expected: int, source: str) -> list[float | None]:
    """Foreign scores as floats: one per item, not-a-number and infinities as ``None``.

    Raises:
        RewardError: on a wrong count or a value that is no number.
    """
    scores: list[float | None] = []
    for value in values:
        if value is None:
            scores.append(None)
            continue
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise RewardError(f"{source} returned {value!r}, which is not a number")
        number = float(value)
        scores.append(number if math.isfinite(number) else None)
    if len(scores) != expected:
        raise RewardError(f"{source} returned {len(scores)} scores for {expected} items")
    return scores
