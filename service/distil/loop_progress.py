"""The latest report of the training loop, its age, and its metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from time import monotonic

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily

from vbon.distil.progress import STOPPED, LoopProgress


class ReportedProgress:
    """The report that a loop sent last; it is not stored, since a loop reports again within minutes."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._latest: LoopProgress | None = None
        self._at_s = 0.0

    @property
    def latest(self) -> LoopProgress | None:
        """The last report; ``None`` if there was none since the start."""
        return self._latest

    def report(self, progress: LoopProgress) -> None:
        """Take in a report."""
        self._latest, self._at_s = progress, self._clock()

    @property
    def age_s(self) -> float:
        """Seconds since the last report."""
        return self._clock() - self._at_s

    @property
    def stale(self) -> bool:
        """True if the loop has been silent for longer than it said, and has not ended."""
        found = self._latest
        return found is not None and found.phase != STOPPED and self.age_s > found.next_within_s

    # -- metrics

    def register(self, registry: CollectorRegistry) -> None:
        """Show the metrics with those of a registry."""
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The present values; none before the first report."""
        found = self._latest
        if found is None:
            return
        info = GaugeMetricFamily(
            "vbon_distil_round_info", "1 for the present phase.", labels=["round", "phase"]
        )
        info.add_metric([found.round, found.phase], 1)
        yield info
        # A loop that has ended leaves NaN, so that after a restart of the service no alert waits for it.
        stale = math.nan if found.phase == STOPPED else float(self.stale)
        for name, text, value in (
            ("done", "How much of the phase is done, such as steps.", found.done),
            ("of", "How much there is to do in the phase.", found.of),
            ("left_seconds", "Seconds until the phase ends, as the loop estimated.", found.left_s),
            ("report_age_seconds", "Seconds since the last report of the loop.", self.age_s),
            ("stale", "1 if the loop is silent for too long; NaN if it has ended.", stale),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"vbon_distil_round_{name}", text, value)
