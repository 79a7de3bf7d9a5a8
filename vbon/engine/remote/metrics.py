"""vLLM's own metrics of the servers behind a remote policy, read from their ``/metrics``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from prometheus_client import Metric

from vbon.engine.metrics import merged, parse_families
from vbon.engine.remote.server import Replica, ReplicaError, now

logger = logging.getLogger(__name__)

MAX_BYTES = 8 * 2**20


class RemoteMetrics:
    """Asks all servers at once, at most every ``keep_s``; one that does not answer is left out.

    Samples get the label ``server``, and of a server with several models only those of ours are kept.
    """

    def __init__(self, timeout_s: float, keep_s: float = 2.0) -> None:
        self._timeout_s, self._keep_s = timeout_s, keep_s
        self._asking = asyncio.Lock()
        self._families: list[Metric] = []
        self._until_s = 0.0
        self._silent: set[str] = set()

    async def collect(self, replicas: Sequence[Replica], model: str | None) -> list[Metric]:
        """What the servers that take requests say of the model now, or said just before."""
        async with self._asking:
            if now() >= self._until_s:
                asked = [self._ask(r, model) for r in replicas if not r.trouble]
                answers = await asyncio.gather(*asked)
                self._families = merged(family for families in answers for family in families)
                self._until_s = now() + self._keep_s
            return self._families

    async def _ask(self, replica: Replica, model: str | None) -> list[Metric]:
        try:
            text = await replica.text("/metrics", seconds=self._timeout_s, max_bytes=MAX_BYTES)
            families = parse_families(text, {"server": replica.url})
        except (ReplicaError, ValueError) as error:
            # Once, and not at every scrape for as long as it lasts.
            log = logger.debug if replica.url in self._silent else logger.warning
            log("no engine metrics of %s: %s", replica.url, error)
            self._silent.add(replica.url)
            return []
        self._silent.discard(replica.url)
        for family in families:
            family.samples = [
                sample
                for sample in family.samples
                if sample.labels.get("model_name", model) == model
            ]
        return families
