"""Texts and duration of one measurement of a best-of-N side."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answers:
    """The texts of one measurement, one a prompt, in the order of the prompts.

    Attributes:
        seconds: from the first request to the last answer.
    """

    seconds: float
    texts: list[str]

    @property
    def requests_per_second(self) -> float:
        """Prompts answered a second."""
        return len(self.texts) / self.seconds
