"""A reward model that is a Python function: ``python:package.module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from vbon.errors import CheckpointError, RewardError
from vbon.rewards.isolation import TextError, TextIsolator
from vbon.rewards.protocol import RewardOptions, Scorable, checked_scores


class CallableReward:
    """Calls ``function(prompts: list[str], completions: list[str]) -> list[float]``.

    Chats are passed as text, one ``role: content`` line per turn. ``None`` or NaN means "no score".
    """

    def __init__(self, import_path: str) -> None:
        module, _, attribute = import_path.partition(":")
        if not module or not attribute:
            raise CheckpointError(
                f"reward callable {import_path!r} must have the form package.module:function"
            )
        self.name, self.revision = f"python:{import_path}", "callable"
        self._module, self._attribute = module, attribute
        self._function: Callable[..., Any] | None = None
        self._isolate = TextIsolator(self.name, self._call)

    def load(self) -> None:
        """Import the function."""
        try:
            function = getattr(importlib.import_module(self._module), self._attribute)
        except (ImportError, AttributeError) as error:
            raise CheckpointError(f"cannot import reward callable {self.name}: {error}") from error
        if not callable(function):
            raise CheckpointError(f"{self.name} is {type(function).__name__}, not callable")
        self._function = function

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """Call the function once for the whole batch, or for parts of it if it raises an exception."""
        if self._function is None:
            raise RewardError(f"reward callable {self.name} is not loaded")
        return self._isolate(items)

    def _call(self, items: Sequence[Scorable]) -> list[float | None]:
        assert self._function is not None  # checked by `score`
        try:
            values = self._function(
                [item.prompt.key for item in items], [item.completion for item in items]
            )
        except Exception as error:  # user code may raise anything
            raise TextError(f"{self.name} raised {type(error).__name__}: {error}") from error
        try:
            listed = list(values)
        except TypeError as error:
            raise RewardError(
                f"{self.name} returned {type(values).__name__}, not a list"
            ) from error
        return checked_scores(listed, len(items), self.name)

    def close(self) -> None:
        """Do nothing: a function holds no resources."""


def open_callable(import_path: str, options: RewardOptions) -> CallableReward:
    """Open the reward function of ``python:IMPORT_PATH``; it needs no options."""
    return CallableReward(import_path)
