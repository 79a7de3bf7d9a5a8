"""Tracebacks without the texts of exceptions, which may contain what a client sent."""

from __future__ import annotations

from vbon.errors import VbonError

_shown = False


class WithheldError(Exception):
    """Takes the place of an exception in a log: its type and its traceback."""


def show_texts(shown: bool) -> None:
    """Show texts in logs from now on, or withhold them, which is the default."""
    global _shown
    _shown = shown


def without_text(error: BaseException) -> BaseException:
    """The exception for the log, and those that caused it; only this project's own keep their texts."""
    if _shown or isinstance(error, WithheldError):
        return error
    text = "its text is withheld; --log-user-errors shows it"
    if isinstance(error, VbonError):
        text = error.log_text or str(error)
    found = WithheldError(f"{type(error).__name__}: {text}").with_traceback(error.__traceback__)
    if error.__cause__ is not None:
        found.__cause__ = without_text(error.__cause__)
    elif error.__context__ is not None and not error.__suppress_context__:
        found.__context__ = without_text(error.__context__)
    return found
