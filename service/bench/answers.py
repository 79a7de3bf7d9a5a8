"""What one measurement of a best-of-N side gave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answers:
    """One text a prompt, in the order of the prompts.

    Attributes:
        seconds: from the first request to the last answer.
    """

    seconds: float
    texts: list[str]

    @property
    def requests_per_second(self) -> float:
        """Prompts answered."""
        return len(self.texts) / self.seconds
