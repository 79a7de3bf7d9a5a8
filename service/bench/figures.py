"""Figures of a bench: two sides that are measured in turns, and what is told of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from vbon.maths.intervals import MedianRange
from vbon.maths.statistics import median_range

Measure = Callable[[], Awaitable[float]]  # one measurement of one side


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table.

    Attributes:
        value: the value that the goal applies to; a ratio in most rows.
        goal: the value aimed for, at least or at most, as ``at_least`` says.
        detail: the values of both sides, with their unit.
        quality: rewards of the sides by reward model, in rows that compare answers.
    """

    name: str
    value: MedianRange
    goal: float | None
    at_least: bool
    detail: str
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """True if the median reaches the goal; ``None`` without a goal."""
        if self.goal is None:
            return None
        return self.value.median >= self.goal if self.at_least else self.value.median <= self.goal

    def as_dict(self) -> dict[str, Any]:
        """The figure as JSON."""
        return {
            "name": self.name,
            **asdict(self.value),
            "goal": self.goal,
            "at_least": self.at_least,
            "reached": self.reached,
            "detail": self.detail,
            **({"quality": self.quality} if self.quality else {}),
        }


async def in_turns(pairs: int, first: Measure, second: Measure) -> tuple[list[float], list[float]]:
    """Measure both sides ``pairs`` times; which side begins alternates.

    One measurement of each before that is thrown away.
    """
    await first()
    await second()
    found: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            found[side].append(await (first, second)[side]())
    return found


def with_unit(values: list[float], unit: str) -> str:
    """Median, smallest and largest value of one side, as text."""
    found = median_range(values)
    return f"{found.median:.4g} [{found.low:.4g}, {found.high:.4g}] {unit}"


def ratios(above: Sequence[float], below: Sequence[float]) -> MedianRange:
    """Ratios of measurements that were taken one after the other."""
    return median_range([a / b for a, b in zip(above, below, strict=True)])


def table_of(pairs: int, figures: Sequence[Figure]) -> Table:
    """Median, smallest and largest value of each figure, beside its goal."""
    table = Table(title=f"median \\[smallest, largest] of {pairs} pairs")
    for column in ("measure", "value", "goal", "reached", "sides"):
        table.add_column(column)
    for figure in figures:
        value, reached = figure.value, figure.reached
        goal = "" if figure.goal is None else f"{'>=' if figure.at_least else '<='} {figure.goal:g}"
        table.add_row(
            figure.name,
            f"{value.median:.3g} \\[{value.low:.3g}, {value.high:.3g}]",
            goal,
            "" if reached is None else ("yes" if reached else "no"),
            figure.detail,
        )
    return table
