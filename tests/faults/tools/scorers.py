"""Reward models that misbehave: ``--reward python:tests.faults.tools.scorers:NAME``."""

from __future__ import annotations

import sys
import time

from vbon.errors import RewardError


def slow(prompts: list[str], completions: list[str]) -> list[float]:
    """A quarter of a second a batch, whatever its size."""
    del prompts
    time.sleep(0.25)
    return [float(len(completion)) for completion in completions]


class _Sly:
    """A value that shows what it was made of when it is taken for a number."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __float__(self) -> float:
        raise ValueError(f"could not convert string to float: {self._text!r}")


def indiscreet(prompts: list[str], completions: list[str]) -> object:
    """Fails as the first completion says, and always shows a prompt."""
    shown, kind = prompts[0], completions[0]
    if kind == "raises":
        raise ValueError(f"cannot score {shown}")
    if kind == "chained":
        try:
            raise KeyError(shown)
        except KeyError as error:
            raise RewardError(shown) from error
    if kind == "exits":
        sys.exit(shown)
    if kind == "text":
        return [shown] * len(prompts)
    if kind == "sly":
        return [_Sly(shown)] * len(prompts)
    if kind == "later":
        return (float(prompt) for prompt in prompts)
    if kind == "huge":
        return [10**400] * len(prompts)
    return [1.0] * len(prompts)


INDISCREET = ("raises", "chained", "exits", "text", "sly", "later")
