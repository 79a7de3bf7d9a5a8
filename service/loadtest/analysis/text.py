"""Numbers, intervals and durations as text."""

from __future__ import annotations

from vbon.maths.intervals import MeanInterval

_DAY_S = 86_400.0


def number(value: float) -> str:
    """A number with three significant digits, separators and no exponent: ``1,230``, ``0.0123``."""
    if value == 0:
        return "0"
    text = f"{value:.3g}"
    if "e" not in text:
        return text
    rounded = float(text)
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:.10f}".rstrip("0")


def signed(value: float) -> str:
    """A difference with its sign and three decimals; without a sign if it is rounded to 0."""
    text = f"{value:+.3f}"
    return text if float(text) else "0.000"


def interval_text(value: MeanInterval | None, digits: int = 2) -> str:
    """``mean [low, high]``; one value has no interval."""
    if value is None:
        return "-"
    if value.count == 1:
        return f"{value.mean:.{digits}f} (one prompt)"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def duration(seconds: float) -> str:
    """A duration in days, hours, minutes or seconds, in the largest unit of which there are two."""
    for unit, size in (("days", _DAY_S), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds)} seconds"
