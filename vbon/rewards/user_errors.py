"""Texts of exceptions that code of users raises, which may contain a prompt.

A command that works for one user, such as training, shows them. The service works for many, so its workers
hide them with :func:`hide_texts`.
"""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

MAX_LOGGED = 20

_hidden = False
_logged: set[str] | None = None  # None: they are not logged either


def hide_texts(*, logs_them: bool) -> None:
    """Leave the texts out of this process's errors from now on.

    Args:
        logs_them: log each of the first :data:`MAX_LOGGED` different ones once.
    """
    global _hidden, _logged
    _hidden, _logged = True, set() if logs_them else None


def describe(error: BaseException) -> str:
    """The type of an exception, with its text unless texts are hidden."""
    name, text = type(error).__name__, str(error)
    if not _hidden:
        return f"{name}: {text}"
    if _logged is not None and text not in _logged and len(_logged) < MAX_LOGGED:
        _logged.add(text)
        logger.warning("code of a reward model raised %s: %s", name, text)
    return name
