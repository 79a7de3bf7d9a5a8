"""The two summaries of repeated measurements: a mean with its interval, a median with its range.

Both are plain dataclasses, so dataclasses and pydantic models alike can hold them, and their JSON has
the same keys everywhere: in files, in responses and on the page.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean with its 95% interval; ``count`` is the number of values averaged, usually one per prompt."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class MedianRange:
    """The median of ``count`` repeats with the smallest and the largest of them."""

    median: float
    low: float
    high: float
    count: int
