"""Logs warnings at a limited rate, so that neither a dead engine under load nor strangers fill the disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

EVERY_S = 10.0
MAX_MESSAGES = 100  # messages remembered
MAX_LINES = 20  # different messages in EVERY_S seconds


class ThrottledLog:
    """Logs the same warning once in ``every_s`` seconds, with the number of repetitions in between.

    Different warnings are limited too, to :data:`MAX_LINES` in that time: a part of a message may depend on
    what a client sent. Those beyond are counted in the next line.
    """

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
        self._window_s, self._lines, self._left_out = now_s() - every_s, 0, 0

    def warn(self, message: str) -> None:
        """Log the message as a warning or, if it was logged recently, count it and log it at level debug."""
        now_s = self._now_s()
        logged_s, repeated = self._logged.get(message, (now_s - self._every_s, 0))
        if now_s - logged_s < self._every_s:
            self._logged[message] = (logged_s, repeated + 1)
            self._logger.debug("%s", message)
            return
        if not self._has_room(now_s):
            self._logger.debug("%s", message)
            return
        if len(self._logged) >= MAX_MESSAGES:
            self._logged.clear()  # rare: messages without request ids are few
        self._logged[message] = (now_s, 0)
        more = f" (and {repeated} times since the last such line)" if repeated else ""
        self._logger.warning("%s%s%s", message, more, self._others())

    def unexpected(self, message: str, error: BaseException) -> None:
        """Log an error with its traceback, unless there have been too many lines lately."""
        if self._has_room(self._now_s()):
            self._logger.error("%s%s", message, self._others(), exc_info=error)

    def _has_room(self, now_s: float) -> bool:
        """Count a line, and tell whether it may be written."""
        if now_s - self._window_s >= self._every_s:
            self._window_s, self._lines = now_s, 0
        self._lines += 1
        self._left_out += self._lines > MAX_LINES
        return self._lines <= MAX_LINES

    def _others(self) -> str:
        """A note of the lines that were left out since the last one."""
        left_out, self._left_out = self._left_out, 0
        return f" ({left_out} other lines were left out)" if left_out else ""
