"""Runs the probes of a calibration against the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from statistics import median

from service.loadtest.analysis.calibration import Climb, calibrated, full_at, in_flight
from service.loadtest.analysis.cell_results import throughput
from service.loadtest.config import LoadTestSettings
from service.loadtest.load.loops import BlockLength
from service.loadtest.observation import BlockRecord
from service.loadtest.plan import Block, Load, LoadCell, Variant
from service.loadtest.schema import Calibration, ServerDescription

_LEAD_S, _LEAST_S = 0.3, 1.0
_ANSWERS = 1.5  # length of a probe in answers

RunBlock = Callable[[Block, BlockLength], Awaitable[BlockRecord]]


async def calibrate(
    settings: LoadTestSettings,
    variants: Sequence[Variant],
    server: ServerDescription | None,
    idle_s: dict[str, float],
    run: RunBlock,
) -> Calibration:
    """Probe rising levels, each with all variants in turn, and choose levels and lengths.

    Args:
        idle_s: time of an answer by label, with one request in flight.
        run: runs a closed loop and reports it as progress.
    """
    climb = Climb(variants, full_at(settings, server), idle_s)
    while (level := climb.next_level()) is not None:
        found = {}
        for variant in variants:
            expected = climb.expected_s(variant, level)
            length = BlockLength(0, max(_LEAD_S, expected), max(_LEAST_S, _ANSWERS * expected))
            cell = LoadCell(variant, Load("closed", in_flight(variant, level)))
            record = await run(Block(cell, -1), length)
            found[variant.label] = throughput(record, lambda _: 1.0), _answer_s(record)
        climb.measured[level] = found
    return calibrated(climb, settings)


def _answer_s(record: BlockRecord) -> float:
    """The median time of an answer; 0 if nothing was answered."""
    seconds = [one.e2e_ms / 1e3 for one in record.measured if one.error is None]
    return median(seconds) if seconds else 0.0
