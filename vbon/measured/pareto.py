"""The Pareto front of measured settings: those that no other beats in both gain and price."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vbon.maths.pareto import front
from vbon.measured.table import MeasuredSetting

Figure = Callable[[MeasuredSetting], float | None]


def pareto(rows: Sequence[MeasuredSetting], gain: Figure, price: Figure) -> list[MeasuredSetting]:
    """The rows that no other dominates, by rising price; rows without one of the two figures are left out."""
    known = [
        (row, (cost, value))
        for row in rows
        if (cost := price(row)) is not None and (value := gain(row)) is not None
    ]
    return [known[index][0] for index in front([place for _, place in known])]
