"""Words about modes that were not fully loaded: the reason, and how to load them further."""

from __future__ import annotations

from service.loadtest.config import LoadTestSettings
from service.loadtest.schema import Calibration

HIGHER_LEVELS = (
    "let a calibration choose the levels (leave out {flag}), or give higher ones; a single-sample mode needs "
    "N times as many requests in flight as best-of-N"
)
GIVEN_LEVELS = HIGHER_LEVELS.format(flag="--concurrency")


def load_reason(source: str, levels: int) -> str:
    """The reason why a mode may not have been fully loaded.

    Args:
        source: the level with the highest throughput, such as ``at 8 in flight``.
        levels: the number of levels that were measured.
    """
    if levels == 1:
        return f"it was measured at one load level only ({source})"
    return f"its throughput still rose {source}, the highest level measured"


def load_remedy(
    settings: LoadTestSettings, calibration: Calibration | None, *, reached: bool
) -> str:
    """The advice by which a mode becomes fully loaded, for a run with these settings.

    Args:
        reached: True if every planned level of the mode was measured in at least one round.
    """
    if not reached:
        return (
            "the run ended before its higher load levels were measured; the same command again measures "
            "the rest"
        )
    if calibration is not None and not calibration.flat:
        return f"allow higher load levels (--max-in-flight, now {settings.max_in_flight})"
    if calibration is not None:
        return (
            "measure more rounds (--rounds) or on a quieter machine, because the calibration found this "
            "level to be high enough"
        )
    flags = [name for name in ("concurrency", "rate") if getattr(settings, name)]
    return HIGHER_LEVELS.format(flag=" and ".join(f"--{name}" for name in flags) or "--concurrency")
