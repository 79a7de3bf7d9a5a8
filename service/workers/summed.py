"""The metrics of several processes as those of one."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric

# Gauges that are 1 only if they are in every process.
_IN_ALL = frozenset({"vbon:ready", "vbon:limits_shared", "vbon:engine_alive"})
_COUNTED = frozenset({"counter", "histogram", "summary"})

_Key = tuple[str, tuple[tuple[str, str], ...]]


def summed(pages: Iterable[Iterable[Metric]]) -> list[Metric]:
    """The families of all pages, each sample once.

    Counters, histograms and numbers of things (``num_``) are added up. Of other gauges the largest value
    counts, or the least of those that say whether all is well; so does the earliest time of creation.
    """
    families: dict[str, Metric] = {}
    values: dict[str, dict[_Key, float]] = {}
    for page in pages:
        for family in page:
            families.setdefault(family.name, family)
            found = values.setdefault(family.name, {})
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                value = float(sample.value)
                found[key] = value if key not in found else _both(family, key, found[key], value)
    return [_family(families[name], found) for name, found in values.items()]


def counted(page: Iterable[Metric]) -> list[Metric]:
    """The families whose values last when their process has ended."""
    return [family for family in page if family.type in _COUNTED]


def _both(family: Metric, key: _Key, one: float, other: float) -> float:
    if key[0].endswith("_created") or family.name in _IN_ALL:
        return min(one, other)
    if family.type in _COUNTED or family.name.removeprefix("vbon:").startswith("num_"):
        return one + other
    return max(one, other)


def _family(like: Metric, values: dict[_Key, float]) -> Metric:
    family = Metric(like.name, like.documentation, like.type, like.unit)
    for (name, labels), value in values.items():
        family.add_sample(name, dict(labels), value)
    return family
