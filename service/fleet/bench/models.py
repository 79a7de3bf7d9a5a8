"""Engines and a reward model that do no work, so that all that is measured is the service around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from service.runtime.batching_scorer import BatchingScorer
from service.runtime.served_scorer import ServedScorer
from service.settings import ServiceSettings
from vbon.engine import Engine
from vbon.engine.fake import FakeEngine
from vbon.rewards import Scorable

BUILDER = f"{__name__}:IdleBuilder"


class LengthReward:
    """A reward model that counts characters."""

    name, revision = "length", "1"

    def load(self) -> None:
        """Do nothing."""

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """The length of each completion."""
        return [float(len(item.completion)) for item in items]

    def close(self) -> None:
        """Do nothing."""


class IdleBuilder:
    """Builds fake engines; a policy's path tells the milliseconds of a token: ``fake:2``.

    Attributes:
        engine: the class of the engines.
    """

    engine: ClassVar[type[FakeEngine]] = FakeEngine

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings

    def place(self, policy: str, path: str | None) -> None:
        """Refuse: the bench replaces no models."""
        raise NotImplementedError

    def engines(self, policy: str, serving: Mapping[str, Engine]) -> dict[str, Engine]:
        """The engine of a policy."""
        path = self._settings.policies[policy]
        seconds = float(path.partition(":")[2] or 0) / 1000
        return {policy: self.engine(path, max_model_len=4_096, seconds_per_token=seconds)}

    def scorer(self, name: str) -> ServedScorer:
        """The scorer of texts by their lengths."""
        return BatchingScorer(LengthReward())
