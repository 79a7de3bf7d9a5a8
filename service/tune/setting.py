"""Settings that requests may use, and the figures that were measured of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from service.tune.drawing import Drawing, Float
from vbon.measured.target import Metric

BON = "bon"


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to answer requests: a mode over a drawing, with N and the mode's own settings.

    Attributes:
        own: the mode's settings as JSON, so that settings can be compared and counted.
        live: True if the mode changes what is drawn, so that it cannot be replayed.
    """

    mode: str
    drawing: Drawing
    n: int
    own: str = "{}"
    live: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The mode's settings, as a request sends them."""
        return dict(json.loads(self.own))

    @property
    def single(self) -> bool:
        """True if it answers with one sample of its policy."""
        return self.mode == self.drawing.policy

    @property
    def path(self) -> str:
        """Path and query of its requests."""
        if self.single:
            return f"/generate?mode={self.mode}"
        return f"/generate?mode={self.mode}&policy={self.drawing.policy}"

    @property
    def body(self) -> dict[str, Any]:
        """The fields of its requests besides the prompt."""
        n = {} if self.single else {"n": self.n}
        return {**self.drawing.sampling, **n, **self.settings}

    @property
    def family(self) -> tuple[str, Drawing, str]:
        """The setting without N."""
        return self.mode, self.drawing, self.own

    @property
    def label(self) -> str:
        """The setting in a few words."""
        words = (
            self.drawing.policy
            if self.single
            else f"{self.mode}, N={self.n}, of {self.drawing.policy}"
        )
        drawing = self.drawing
        parts = [words]
        parts += [f"temperature {drawing.temperature:.3g}"] if drawing.temperature != 1 else []
        parts += [f"top_p {drawing.top_p:.3g}"] if drawing.top_p != 1 else []
        parts += [f"top_k {drawing.top_k}"] if drawing.top_k else []
        settings = self.settings
        if any(name.startswith("prior_") for name in settings):
            parts.append("the prompts' prior")
        for name, value in settings.items():
            if name.startswith("prior_"):  # four numbers that say little to people
                continue
            parts.append(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
        return ", ".join(parts)


def setting_of(
    mode: str, drawing: Drawing, n: int, settings: Mapping[str, Any], *, live: bool = False
) -> Setting:
    """A setting; the order of ``settings`` does not matter."""
    return Setting(mode, drawing, n, json.dumps(dict(settings), sort_keys=True), live)


@dataclass(frozen=True, slots=True)
class Measured:
    """The gains and costs of a setting on each prompt of a part, shape ``(prompts,)``.

    Attributes:
        gains: by metric; NaN where a prompt has none.
        tokens: tokens decoded for an answer, those of all candidates together.
        rounds: mean number of rounds of drawing that follow each other, and its 95th percentile.
        failed: prompts whose request failed.
        unscored: candidates, or answers, without a reward.
    """

    setting: Setting
    gains: Mapping[Metric, Float]
    tokens: Float
    rounds: tuple[float, float] = (1.0, 1.0)
    failed: int = 0
    unscored: int = 0

    def without_prompts(self) -> Measured:
        """The same without the figures of single prompts, for what is kept after means were taken of them."""
        return replace(self, gains={}, tokens=np.empty(0))
