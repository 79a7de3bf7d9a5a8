"""Says the same thing once in a while: under load a dead engine would fill a disk with one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

EVERY_S, MOST_SENTENCES = 10.0, 100


class SparseLog:
    """Warnings, each sentence once in ``every_s`` seconds; the next says how many there were meanwhile."""

    def __init__(
        self,
        logger: logging.Logger,
        *,
        every_s: float = EVERY_S,
        now_s: Callable[[], float] = monotonic,
    ) -> None:
        self._logger, self._every_s, self._now_s = logger, every_s, now_s
        self._said: dict[str, tuple[float, int]] = {}

    def warn(self, sentence: str) -> None:
        """Log it as a warning, or count it; the debug level has them all."""
        now_s = self._now_s()
        said_s, silent = self._said.get(sentence, (now_s - self._every_s, 0))
        if now_s - said_s < self._every_s:
            self._said[sentence] = (said_s, silent + 1)
            self._logger.debug("%s", sentence)
            return
        if len(self._said) >= MOST_SENTENCES:
            self._said.clear()  # sentences that repeat no id are few
        self._said[sentence] = (now_s, 0)
        more = f" (and {silent} times since the last such line)" if silent else ""
        self._logger.warning("%s%s", sentence, more)
