"""Chooses load levels and the lengths of blocks from short probes.

Best-of-N decodes N sequences per request, so levels are equal in sequences: 512 single samples load an
engine as 32 requests of best-of-16 do. Probes climb until the engines are full, as far as that costs little
time; where answers are slow they stop as soon as more load adds little throughput to any variant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil

from service.loadtest.config import LoadTestSettings
from service.loadtest.journal import Journal
from service.loadtest.plan import Variant
from service.loadtest.schema import (
    CalibratedCell,
    Calibration,
    CalibrationProbe,
    ServerDescription,
)

FLAT = 1.07  # gain by a doubled load that counts as none: well below what a verdict calls rising
STEEP = 1.5  # gain after which a step may be quadrupled
QUICK_S = 4.0  # answers that take no longer at twice a level let the climb go on to full engines
ENGINE_SEQUENCES = 256  # what an engine decodes at once where the server does not tell
_LEAST_SEQUENCES = 32
_WHOLE = 3.0  # lengths of a block in answers, with some room to the 2 below which a report warns
_LEAST_WHOLE = 2.5
_LEAST_S = 2.5  # length of a block of quick answers
_LEAD_S = 0.5


@dataclass(slots=True)
class Climb:
    """The probes so far, and the level to probe next.

    Attributes:
        full: sequences that fill the engines, beyond which requests only wait.
        idle_s: time of an answer of each variant by itself.
        measured: throughput and time of an answer by level and variant.
    """

    variants: Sequence[Variant]
    full: int
    idle_s: Mapping[str, float]
    measured: dict[int, dict[str, tuple[float, float]]] = field(default_factory=dict)

    def next_level(self) -> int | None:
        """The sequences of the next probe; ``None`` if the climb has ended."""
        if not self.measured:
            return min(self.first, self.full)
        level = max(self.measured)
        if level >= self.full or (not self._quick(2 * level) and self.knee() is not None):
            return None
        step = 4 if self._quick(4 * level) and self._steep() else 2
        return min(step * level, self.full)

    @property
    def first(self) -> int:
        """The first level: at least two requests of every variant."""
        return max(_LEAST_SEQUENCES, 2 * max(variant.n for variant in self.variants))

    def knee(self) -> int | None:
        """The lowest level above which a doubled load adds little to any variant, if one is known."""
        for low, high in pairwise(sorted(self.measured)):
            allowed = FLAT if high <= 2 * low else FLAT**2
            if all(
                self.measured[high][v.label][0] <= allowed * self.measured[low][v.label][0]
                for v in self.variants
            ):
                return low
        return None

    def expected_s(self, variant: Variant, level: int) -> float:
        """An upper bound of the time of an answer: by Little's law, if throughput grew no more."""
        below = [one for one in self.measured if one <= level]
        if not below:
            return self.idle_s[variant.label] * in_flight(variant, level)
        rate, seconds = self.measured[max(below)][variant.label]
        if rate <= 0:
            return seconds * level / max(below)
        return max(seconds, in_flight(variant, level) / rate)

    def _quick(self, level: int) -> bool:
        return all(self.expected_s(variant, level) <= QUICK_S for variant in self.variants)

    def _steep(self) -> bool:
        levels = sorted(self.measured)
        if len(levels) < 2:
            return True
        low, high = self.measured[levels[-2]], self.measured[levels[-1]]
        return any(high[v.label][0] > STEEP * low[v.label][0] for v in self.variants)


def in_flight(variant: Variant, sequences: int) -> int:
    """The requests of a variant that decode about so many sequences."""
    return max(1, round(sequences / variant.n))


def full_at(settings: LoadTestSettings, server: ServerDescription | None) -> int:
    """The sequences that fill the engines, within the limits of the server and of ``max_in_flight``.

    Twice as many must be possible without a refusal, because a level is shown to be saturated by the next.
    """
    running = server.running_sequences if server is not None else None
    waiting = server.waiting_sequences if server is not None else None
    full = running or ENGINE_SEQUENCES
    if running is not None and waiting is not None:
        full = min(full, (running + waiting) // 2)
    return max(1, min(full, settings.max_in_flight // 2))


def calibrated(climb: Climb, settings: LoadTestSettings) -> Calibration:
    """The levels and lengths that follow from the probes of a climb that has ended."""
    top = max(climb.measured)
    level = top if top >= climb.full else climb.knee() or top
    cells = []
    for sequences in (0, level, 2 * level):
        for variant in climb.variants:
            seconds = (
                climb.expected_s(variant, sequences) if sequences else climb.idle_s[variant.label]
            )
            requests = in_flight(variant, sequences) if sequences else 1
            cells.append(_cell(variant, requests, seconds, settings))
    return Calibration(
        probes=[
            CalibrationProbe(
                variant=variant.label,
                in_flight=in_flight(variant, sequences),
                sequences=sequences,
                requests_per_s=rate,
                e2e_s=seconds or None,
            )
            for sequences, found in sorted(climb.measured.items())
            for variant in climb.variants
            for rate, seconds in (found[variant.label],)
        ],
        cells=_shortened(cells, settings),
        flat=top >= climb.full or climb.knee() is not None,
    )


def _cell(
    variant: Variant, requests: int, seconds: float, settings: LoadTestSettings
) -> CalibratedCell:
    duration = settings.duration_s or _rounded(max(_LEAST_S, _WHOLE * seconds))
    lead = _rounded(max(_LEAD_S, seconds)) if settings.warmup_s is None else settings.warmup_s
    return CalibratedCell(
        variant=variant.label,
        in_flight=requests,
        warmup_s=lead,
        duration_s=duration,
        expected_s=settings.ramp_s + lead + duration + seconds,
    )


def _shortened(cells: Sequence[CalibratedCell], settings: LoadTestSettings) -> list[CalibratedCell]:
    """The cells with blocks as short as whole answers allow, if the run would exceed ``max_s``."""
    total = settings.rounds * sum(one.expected_s for one in cells)
    if total <= settings.max_s or settings.duration_s is not None:
        return list(cells)
    share = max(
        0.0, 1 - (total - settings.max_s) / (settings.rounds * sum(c.duration_s for c in cells))
    )
    found = []
    for one in cells:
        seconds = one.expected_s - settings.ramp_s - one.warmup_s - one.duration_s
        duration = _rounded(max(share * one.duration_s, _LEAST_WHOLE * seconds, 1.0))
        duration = min(duration, one.duration_s)
        expected = one.expected_s - one.duration_s + duration
        found.append(one.model_copy(update={"duration_s": duration, "expected_s": expected}))
    return found


def _rounded(seconds: float) -> float:
    """Seconds rounded up to a tenth."""
    return ceil(10 * seconds - 1e-9) / 10


def planned_s(calibration: Calibration, rounds: int) -> float:
    """Seconds that all blocks are expected to take."""
    return rounds * sum(one.expected_s for one in calibration.cells)


def calibration_of(journal: Journal) -> Calibration | None:
    """The calibration that a run has finished, if any."""
    lines = journal.of_kind("calibration")
    return Calibration.model_validate(lines[-1]) if lines else None
