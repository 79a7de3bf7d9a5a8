"""Lines for people on what a load test is about to do, and how long that takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from service.loadtest.analysis.calibration import planned_s
from service.loadtest.analysis.text import duration
from service.loadtest.config import LoadTestSettings
from service.loadtest.schema import Calibration


def beforehand(settings: LoadTestSettings) -> str:
    """A line that says, before anything is sent, about how long the run will take."""
    if settings.saturate:
        return "The search for the highest rates takes about 2 minutes a mode; then their rounds follow."
    if not settings.chooses_levels:
        return "The levels are given; the time of all blocks follows the warm-up."
    return (
        "First a calibration of about half a minute chooses the load levels; then all blocks together take "
        f"up to {duration(settings.max_s)} (--max-s), or longer if slow answers need it, and the answers are "
        "scored."
    )


def calibration_words(found: Calibration, settings: LoadTestSettings) -> Iterator[str]:
    """Lines that tell the chosen levels, whether they saturate every mode, and a time beyond ``max_s``."""
    levels: dict[str, list[str]] = defaultdict(list)
    for cell in found.cells:
        levels[cell.variant].append(str(cell.in_flight))
    chosen = "; ".join(f"{name} {', '.join(own)}" for name, own in levels.items())
    yield f"Requests in flight: {chosen}."
    if not found.flat:
        yield "Throughput still rose at the highest level that --max-in-flight allows."
    needed = planned_s(found, settings.rounds)
    if needed <= settings.max_s or settings.requests is not None:
        return
    if settings.duration_s is not None:
        yield (
            f"Blocks of {duration(settings.duration_s)} (--duration-s) need {duration(needed)} in all, "
            f"longer than the {duration(settings.max_s)} of --max-s."
        )
        return
    yield (
        f"All blocks need {duration(needed)}, longer than the {duration(settings.max_s)} of --max-s, because "
        "a block has to see whole answers. Fewer modes, --rounds or --max-tokens need less time."
    )
