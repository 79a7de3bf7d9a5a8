"""The collector's metrics, read at each scrape from the counts that its threads keep."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from service.distil.writer import Writer


class DistilMetrics:
    """Metrics with the prefix ``vbon_distil_``."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def register(self, registry: CollectorRegistry) -> None:
        """Show them with the metrics of a registry."""
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The present values."""
        writer, totals, removed = self._writer, self._writer.totals, self._writer.directory.removed
        yield _counter("lines", "Answers collected.", writer.lines)
        yield _counter("candidates", "Candidates of collected answers.", writer.candidates)
        yield _counter(
            "left_out_candidates",
            "Candidates of collected answers that had no reward.",
            writer.left_out,
        )
        yield _by_reason("dropped", "Answers not collected, by reason.", writer.dropped)
        gone = {reason: removed.lines[reason] for reason in ("bytes", "age", "count")}
        yield _by_reason(
            "removed_lines",
            "Collected answers removed: for room, for age, for the number of shards, by request id.",
            gone | {"deleted": removed.deleted},
        )
        yield _counter(
            "cut_bytes", "Bytes of incomplete lines that a killed process left.", removed.cut_bytes
        )
        yield GaugeMetricFamily("vbon_distil_kept_lines", "Answers kept.", totals.lines)
        yield GaugeMetricFamily("vbon_distil_bytes", "Bytes of all shards.", totals.size)
        yield GaugeMetricFamily(
            "vbon_distil_waiting", "Answers that wait to be written.", writer.waiting
        )
        shards = GaugeMetricFamily("vbon_distil_shards", "Shards, by state.", labels=["state"])
        shards.add_metric(["open"], totals.open)
        shards.add_metric(["sealed"], totals.sealed)
        yield shards


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"vbon_distil_{name}", text, value)


def _by_reason(name: str, text: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"vbon_distil_{name}", text, labels=["reason"])
    for reason, count in counts.items():
        family.add_metric([reason], count)
    return family
