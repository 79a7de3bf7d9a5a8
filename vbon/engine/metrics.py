"""vLLM's own Prometheus metrics of an engine, from this process or from another server's text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "vllm:"


def logger_into(registry: CollectorRegistry, base: type[Any]) -> type[Any]:
    """vLLM's ``PrometheusStatLogger`` as a class that keeps its metrics in a registry of its own.

    vLLM registers in the global one and, for each new engine, takes out what the last had put there:
    of two engines in a process only one would be seen.
    """
    return type(
        "OwnRegistryStatLogger",
        (base,),
        {
            # static, or the class would bind what it finds on itself as methods
            "_gauge_cls": staticmethod(partial(Gauge, registry=registry)),
            "_counter_cls": staticmethod(partial(Counter, registry=registry)),
            "_histogram_cls": staticmethod(partial(Histogram, registry=registry)),
        },
    )


def families_of(registry: CollectorRegistry) -> list[Metric]:
    """vLLM's families of a registry as they stand."""
    return [family for family in registry.collect() if family.name.startswith(PREFIX)]


def parse_families(text: str, labels: Mapping[str, str]) -> list[Metric]:
    """vLLM's families in a text exposition, each sample with more labels.

    Raises:
        ValueError: not in Prometheus' text format.
    """
    found = text_string_to_metric_families(text)
    return [labelled(family, labels) for family in found if family.name.startswith(PREFIX)]


def labelled(family: Metric, labels: Mapping[str, str]) -> Metric:
    """A copy whose samples have more labels."""
    copy = Metric(family.name, family.documentation, family.type, family.unit)
    copy.samples = [
        sample._replace(labels={**labels, **sample.labels}) for sample in family.samples
    ]
    return copy


def merged(families: Iterable[Metric]) -> list[Metric]:
    """One family a name, as the format demands; engines of other versions may disagree on the type.

    Of those that disagree the first is kept.
    """
    by_name: dict[str, Metric] = {}
    for family in families:
        known = by_name.setdefault(family.name, family)
        if known is not family and known.type == family.type:
            known.samples += family.samples
    return list(by_name.values())
