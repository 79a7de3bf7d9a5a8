"""A progress bar for the transformers ``Trainer``."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from vbon.progress_bar import ProgressBar


class TrainerProgress:
    """A :class:`ProgressBar` that a ``Trainer`` advances through :attr:`callback`."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: ProgressBar | None = None
        self.callback = _Callback(self)

    def __enter__(self) -> TrainerProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def begin(self, total: int) -> None:
        """Start the bar; the trainer calls this once it knows the number of steps."""
        self._bar = ProgressBar(self._title, total).__enter__()

    def step(self) -> None:
        """Advance the bar; the trainer calls this after each optimizer step."""
        if self._bar is not None:
            self._bar.advance()


class _Callback(TrainerCallback):
    def __init__(self, progress: TrainerProgress) -> None:
        self._progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.begin(state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.step()
