"""The metrics of mode ``auto`` by price, read at each scrape from the counts of its router."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from service.auto.live import LiveAuto

L = TypeVar("L", bound=tuple[str, ...])
# Several applications may have one runtime, one after the other or at once; the last one is shown.
_shown: WeakKeyDictionary[CollectorRegistry, Collector] = WeakKeyDictionary()
_SETTING = ("mode", "policy")


class AutoMetrics:
    """Metrics with the prefix ``vbon_auto_``."""

    def __init__(self, auto: LiveAuto) -> None:
        self._auto = auto

    def register(self, registry: CollectorRegistry) -> None:
        """Show them with the metrics of a registry, in the place of those of an earlier application."""
        before = _shown.pop(registry, None)
        if before is not None:
            registry.unregister(before)
        registry.register(self)
        _shown[registry] = self

    def collect(self) -> Iterable[Metric]:
        """The present values."""
        router, table = self._auto.router, self._auto.table
        yield _counters("answers", "Prompts answered by price.", _SETTING, router.answers)
        yield _counters("tokens", "Tokens generated for them.", _SETTING, router.tokens)
        yield _counters(
            "expected_tokens", "Tokens that the table expects.", _SETTING, router.expected_tokens
        )
        yield _counters(
            "budgets",
            "Answers with a budget, by whether it is expected to be met.",
            ("kind", "met"),
            router.budgets,
        )
        yield _counters(
            "unmeasured",
            "Prompts for which no measured setting could be used, by reason.",
            ("reason",),
            {(reason,): count for reason, count in router.unmeasured.items()},
        )
        yield CounterMetricFamily(
            "vbon_auto_fallbacks", "Prompts whose engine failed to answer.", router.fallbacks
        )
        rows = GaugeMetricFamily("vbon_auto_rows", "Measured settings.", labels=["state"])
        total = 0 if table.table is None else len(table.table.rows)
        usable = 0 if table.table is None or not self._auto.is_loaded else len(table.usable().rows)
        rows.add_metric(["usable"], usable)
        rows.add_metric(["stale"], total - usable)
        yield rows


def _counters(
    name: str, text: str, labels: Sequence[str], counts: Mapping[L, int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"vbon_auto_{name}", text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family
