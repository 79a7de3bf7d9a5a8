"""vLLM's Prometheus metrics: of engines in this process, and parsed from other servers' ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "vllm:"


def stat_logger_type(registry: CollectorRegistry, base: type[Any]) -> type[Any]:
    """A subclass of vLLM's ``PrometheusStatLogger`` that keeps its metrics in the given registry.

    vLLM itself uses the global registry and removes the metrics of the previous engine whenever an engine
    starts, so only one of several engines in a process would be visible.
    """
    return type(
        "OwnRegistryStatLogger",
        (base,),
        {
            # staticmethod keeps Python from binding these as methods.
            "_gauge_cls": staticmethod(partial(Gauge, registry=registry)),
            "_counter_cls": staticmethod(partial(Counter, registry=registry)),
            "_histogram_cls": staticmethod(partial(Histogram, registry=registry)),
        },
    )


def vllm_families(registry: CollectorRegistry) -> list[Metric]:
    """The current values of vLLM's metric families in a registry."""
    return [family for family in registry.collect() if family.name.startswith(PREFIX)]


def parse_families(text: str, labels: Mapping[str, str]) -> list[Metric]:
    """vLLM's metric families in a text exposition, with labels added to each sample.

    Raises:
        ValueError: the text is not in Prometheus' text format.
    """
    found = text_string_to_metric_families(text)
    return [labelled(family, labels) for family in found if family.name.startswith(PREFIX)]


def labelled(family: Metric, labels: Mapping[str, str]) -> Metric:
    """A copy of a metric family with labels added to each sample."""
    copy = Metric(family.name, family.documentation, family.type, family.unit)
    copy.samples = [
        sample._replace(labels={**labels, **sample.labels}) for sample in family.samples
    ]
    return copy


def merged(families: Iterable[Metric]) -> list[Metric]:
    """Metric families merged by name, because the format allows only one family a name.

    Engines of different versions may disagree on the type of a metric. The first type is then kept, and
    families of other types are dropped.
    """
    by_name: dict[str, Metric] = {}
    for family in families:
        known = by_name.setdefault(family.name, family)
        if known is not family and known.type == family.type:
            known.samples += family.samples
    return list(by_name.values())
