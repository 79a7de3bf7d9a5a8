"""Logs repeated warnings at a limited rate, so that a dead engine under load does not fill the disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

EVERY_S = 10.0
MAX_MESSAGES = 100  # messages remembered


class ThrottledLog:
    """Logs the same warning once in ``every_s`` seconds, with the number of repetitions in between."""

    def __init__(
        self,
        logger: logging.Logger,
        *,
        every_s: float = EVERY_S,
        now_s: Callable[[], float] = monotonic,
    ) -> None:
        self._logger, self._every_s, self._now_s = logger, every_s, now_s
        # Message -> when it was last logged as a warning, and repetitions since then.
        self._logged: dict[str, tuple[float, int]] = {}

    def warn(self, message: str) -> None:
        """Log the message as a warning or, if it was logged recently, count it and log it at level debug."""
        now_s = self._now_s()
        logged_s, repeated = self._logged.get(message, (now_s - self._every_s, 0))
        if now_s - logged_s < self._every_s:
            self._logged[message] = (logged_s, repeated + 1)
            self._logger.debug("%s", message)
            return
        if len(self._logged) >= MAX_MESSAGES:
            self._logged.clear()  # rare: messages without request ids are few
        self._logged[message] = (now_s, 0)
        more = f" (and {repeated} times since the last such line)" if repeated else ""
        self._logger.warning("%s%s", message, more)
