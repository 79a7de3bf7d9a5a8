"""Scores a batch that failed in parts, so that a text that cannot be scored affects no other text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from vbon.errors import RewardError
from vbon.rewards.protocol import RewardModel, Scorable
from vbon.rewards.user_errors import describe

logger = logging.getLogger(__name__)

MAX_LOGGED_FAULTS = 20

Scores = list[float | None]


class TextError(RewardError):
    """A batch failed, and one of its texts may be the cause; fewer texts may succeed."""


class TextIsolator:
    """Calls a scoring function; if it raises :class:`TextError`, calls it again with parts of the batch.

    A text that fails alone gets the score ``None``, if the model scores another text. A text that was scored
    before decides that: while it fails too, the model is at fault, and the whole batch fails.

    Args:
        name: the model's name, for the log.
        score: scores a batch with one call.
    """

    def __init__(self, name: str, score: Callable[[Sequence[Scorable]], Scores]) -> None:
        self._name, self._score = name, score
        self._known_good: Scorable | None = None
        self._logged: set[str] = set()

    def __call__(self, items: Sequence[Scorable]) -> Scores:
        """The scores of the items.

        Raises:
            RewardError: the model failed, whatever the texts.
        """
        try:
            return self._whole(items)
        except TextError as error:
            if self._known_good is not None:
                self._whole([self._known_good])  # raises if the model is at fault
            elif len(items) == 1:
                raise
            scores, faults = self._in_parts(items, error)
            if self._known_good is None:
                raise
            for fault in faults:
                self.report(fault)
            return scores

    def report(self, fault: str) -> None:
        """Log the reason why a text gets no score; each reason is logged once."""
        if fault not in self._logged and len(self._logged) < MAX_LOGGED_FAULTS:
            self._logged.add(fault)
            logger.warning("%s: %s; such texts get no reward", self._name, fault)

    def _whole(self, items: Sequence[Scorable]) -> Scores:
        scores = self._score(items)
        for item, score in zip(items, scores, strict=True):
            if self._known_good is None and score is not None:
                self._known_good = item
        return scores

    def _in_parts(self, items: Sequence[Scorable], error: TextError) -> tuple[Scores, list[str]]:
        """The scores of a batch that failed with an error, and why some of its texts have none."""
        if len(items) == 1:
            return [None], [str(error)]
        scores: Scores = []
        faults: list[str] = []
        middle = len(items) // 2
        for part in (items[:middle], items[middle:]):
            try:
                scores += self._whole(part)
            except TextError as failed:
                found, reasons = self._in_parts(part, failed)
                scores, faults = scores + found, faults + reasons
        return scores, faults


class IsolatedReward:
    """A reward model of a package, whose errors other than :class:`RewardError` are its texts' matter."""

    def __init__(self, model: RewardModel) -> None:
        self.name, self.revision = model.name, model.revision
        self._model = model
        self._isolate = TextIsolator(model.name, self._score)

    def load(self) -> None:
        """Load the model."""
        self._model.load()
        self.revision = self._model.revision

    def score(self, items: Sequence[Scorable]) -> Scores:
        """The model's scores, with ``None`` for texts on which it fails."""
        return self._isolate(items)

    def close(self) -> None:
        """Release the model's resources."""
        self._model.close()

    def _score(self, items: Sequence[Scorable]) -> Scores:
        try:
            scores = list(self._model.score(items))
        except RewardError as error:  # in the words of the package
            raise RewardError(f"{self.name} failed: {describe(error)}") from error
        except Exception as error:  # code of a package may raise anything
            raise TextError(f"{self.name} raised {describe(error)}") from error
        if len(scores) != len(items):
            raise RewardError(f"{self.name} returned {len(scores)} scores for {len(items)} items")
        return scores
