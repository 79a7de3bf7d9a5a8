"""What ``/metrics`` shows: the service's own metrics, and each engine's by policy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from prometheus_client import Metric, generate_latest

from service.runtime.metrics import Metrics
from vbon.engine import Engine
from vbon.engine.metrics import labelled, merged

logger = logging.getLogger(__name__)


async def expose(metrics: Metrics, policies: Mapping[str, Engine]) -> bytes:
    """The text exposition; engines that have nothing to say, or fail to, are left out."""
    found = await asyncio.gather(*(_of_policy(*item) for item in policies.items()))
    engines = merged(family for families in found for family in families)
    return metrics.render() + generate_latest(_Collected(engines))


async def _of_policy(policy: str, engine: Engine) -> list[Metric]:
    try:
        return [labelled(family, {"policy": policy}) for family in await engine.metrics()]
    except Exception:  # one engine must not blind the eye on all the others
        logger.exception("the metrics of policy %s cannot be read", policy)
        return []


class _Collected:
    """Families that are there already, where the format's writer wants to collect them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
