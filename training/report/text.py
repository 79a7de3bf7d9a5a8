"""A table of text and how its cells are written.

``[a, b]`` is a 95% interval over prompts, ``(a to b)`` smallest and largest seed or point.
"""

from __future__ import annotations

from training.sweep.pareto import Point, SeedMean
from training.sweep.records import Sweep
from vbon.maths.intervals import MeanInterval
from vbon.storage.evaluation_record import MethodRow

WIN_RATE = "win_rate"
PLANES = {
    WIN_RATE: "win rate",
    "gold_win_rate": "gold win rate",
    "reward": "reward",
    "gold": "gold reward",
}


def planes_of(sweep: Sweep) -> dict[str, str]:
    """Record field to label: win rate and reward, gold's beside each if a gold model reported."""
    return {f: label for f, label in PLANES.items() if sweep.has_gold or not f.startswith("gold")}


def win_points(sweep: Sweep) -> list[Point]:
    """Measured cells on the plane (KL, win rate)."""
    return list(sweep.points(WIN_RATE).values())


def figures(row: MethodRow, planes: dict[str, str]) -> list[str]:
    """The row on every plane, in the planes' order; ``"-"`` where it was not measured."""
    return [interval(getattr(row, f), 3 if "win_rate" in f else 2) for f in planes]


def interval(value: MeanInterval | None, digits: int) -> str:
    """``mean [low, high]``; the mean alone if it is exact."""
    if value is None:
        return "-"
    if value.low == value.high:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def seed_range(value: SeedMean, digits: int) -> str:
    """``mean (smallest to largest seed)``; the mean alone if all seeds read alike."""
    return span(value.mean, value.low, value.high, f"{{:.{digits}f}}")


def percent(value: SeedMean) -> str:
    """A share in percent, as :func:`seed_range`."""
    return span(value.mean, value.low, value.high, "{:.0%}")


def span(middle: float, low: float, high: float, form: str) -> str:
    """``middle (low to high)``, each in the format ``form``; the middle alone if all read alike."""
    text, least, most = form.format(middle), form.format(low), form.format(high)
    return text if least == text == most else f"{text} ({least} to {most})"
