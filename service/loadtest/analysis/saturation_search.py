"""Searches the highest rate at which a server meets its SLO: bracket, bisect, confirm.

A probe is an open loop at one rate. It passes if at most 5% of its requests were late or failed. The search
doubles from an easy rate until a probe fails, or halves until one passes. Then it halves the bracket until
the bracket is narrower than the tolerance, and probes the lower end once more, so that the reported rate has
passed twice. If that probe fails, its rate becomes the upper end, and the search continues below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.loadtest.config import LoadTestSettings
from service.loadtest.journal import Journal
from service.loadtest.plan import (
    Variant,
)

LATE_SHARE = 0.05
_MOST_PROBES = 40
_MOST_HALVINGS = 3  # at lower rates a probe has too few requests to decide


@dataclass(slots=True)
class SaturationSearch:
    """The state of one variant's search, updated with the outcome of each probe.

    Attributes:
        start: first rate to try, requests per second.
        tolerance: width of the final bracket relative to its lower end.
        passed: highest rate that passed and has no failure at or below it.
        failed: lowest rate that failed.
    """

    start: float
    tolerance: float
    passed: float | None = None
    failed: float | None = None
    confirmed: bool = False
    rates: list[float] = field(default_factory=list)

    def next_rate(self) -> float | None:
        """The rate to probe next; ``None`` if the search has ended."""
        if self.confirmed or len(self.rates) >= _MOST_PROBES:
            return None
        if self.failed is None:
            return self.start if self.passed is None else self.passed * 2
        if self.passed is None:
            return self.failed / 2 if self.failed > self.start / 2**_MOST_HALVINGS else None
        if self.failed / self.passed - 1 <= self.tolerance:
            return self.passed
        return (self.failed * self.passed) ** 0.5

    def note(self, rate: float, passed: bool) -> None:
        """Record the outcome of a probe."""
        self.rates.append(rate)
        if passed:
            narrow = self.failed is not None and self.failed / rate - 1 <= self.tolerance
            self.confirmed = rate == self.passed and narrow
            self.passed = rate if self.passed is None else max(rate, self.passed)
            return
        self.failed = rate
        if self.passed is not None and rate <= self.passed:
            self.passed = None


def hopeless(late: int, expected: float) -> bool:
    """True if a probe can no longer pass: too many of its expected requests were late already."""
    return late > LATE_SHARE * expected + 1


def begun_searches(
    journal: Journal, variants: Sequence[Variant], settings: LoadTestSettings
) -> dict[str, SaturationSearch]:
    """The searches with all probes of the journal; a variant that is too slow when idle has none."""
    idle = {line["variant"]: line for line in journal.of_kind("idle")}
    searches = {}
    for variant in variants:
        seen = idle[variant.label]
        if seen["error"] is None and 0 < seen["e2e_ms"] <= settings.slos["e2e"]:
            start = float(f"{1e3 / seen['e2e_ms']:.2g}")
            searches[variant.label] = SaturationSearch(start, settings.saturate_tolerance)
    for line in journal.of_kind("probe"):
        searches[line["variant"]].note(line["rate"], line["passed"])
    return searches


def confirmed_rates(
    journal: Journal, variants: Sequence[Variant], settings: LoadTestSettings
) -> dict[Variant, float]:
    """The highest rates of the variants whose searches have confirmed one."""
    if len(journal.of_kind("idle")) < len(variants):
        return {}
    searches = begun_searches(journal, variants, settings)
    found = {variant: searches.get(variant.label) for variant in variants}
    return {
        variant: search.passed
        for variant, search in found.items()
        if search is not None and search.passed is not None and search.next_rate() is None
    }
