"""Formats figures as the texts of tables.

``[a, b]`` is a 95% interval over prompts; ``(a to b)`` are the smallest and largest seed or point.
"""

from __future__ import annotations

from training.sweep.equal_shares import EqualShare
from training.sweep.pareto import Point, SeedMean
from training.sweep.records import Sweep
from training.sweep.spending import Figure
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
    """The record fields that are plotted against KL, with their labels; gold ones only if measured."""
    return {f: label for f, label in PLANES.items() if sweep.has_gold or not f.startswith("gold")}


def win_rate_points(sweep: Sweep) -> list[Point]:
    """The measured cells as points of the plane (KL, win rate)."""
    return list(sweep.points(WIN_RATE).values())


def plane_texts(row: MethodRow, planes: dict[str, str]) -> list[str]:
    """The row's figures on each plane, in their order; ``"-"`` for one that was not measured."""
    return [interval_text(getattr(row, f), 3 if "win_rate" in f else 2) for f in planes]


def interval_text(value: MeanInterval | None, digits: int) -> str:
    """``mean [low, high]``, only the mean if it is exact, or ``"-"`` without a value."""
    if value is None:
        return "-"
    if value.low == value.high:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def seed_text(value: SeedMean, digits: int) -> str:
    """``mean (smallest to largest seed)``, or only the mean if all seeds give the same text."""
    return range_text(value.mean, value.low, value.high, f"{{:.{digits}f}}")


def percent_text(value: SeedMean) -> str:
    """A share over seeds in percent, otherwise like :func:`seed_text`."""
    return range_text(value.mean, value.low, value.high, "{:.0%}")


def figure_text(value: Figure, digits: int) -> str:
    """A figure with its interval, or with the range of the seeds."""
    return seed_text(value, digits) if isinstance(value, SeedMean) else interval_text(value, digits)


def differs_text(differs: bool | None) -> str:
    """The outcome of a comparison with the largest; ``-`` for the largest itself."""
    return {None: "-", True: "yes", False: "no"}[differs]


def share_text(value: MeanInterval) -> str:
    """A share with its interval in percent."""
    return f"{value.mean:.0%} [{value.low:.0%}, {value.high:.0%}]"


def equal_terms_text(share: EqualShare) -> str:
    """The sentence that says with how many points and seeds the methods were compared."""
    least, most = share.grid
    count = str(least) if least == most else f"{least} to {most}"
    seeds = ", ".join(str(seed) for seed in share.seeds)
    return (
        f"Every method enters with {count} of its points per seed, chosen at random; seeds {seeds}."
    )


def range_text(middle: float, low: float, high: float, form: str) -> str:
    """``middle (low to high)`` in the format ``form``, or only ``middle`` if all texts are equal."""
    text, lowest, highest = form.format(middle), form.format(low), form.format(high)
    return text if lowest == text == highest else f"{text} ({lowest} to {highest})"
