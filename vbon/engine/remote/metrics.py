"""vLLM's metrics of a remote policy, read from its servers' ``/metrics``."""

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
    """The metrics of all servers, read at most every ``keep_s`` seconds.

    A server that does not answer within ``timeout_s`` is left out. Samples get the label ``server``. If a
    server has several models, only the samples of the policy's model are kept.
    """

    def __init__(self, timeout_s: float, keep_s: float = 2.0) -> None:
        self._timeout_s, self._keep_s = timeout_s, keep_s
        self._asking = asyncio.Lock()
        self._families: list[Metric] = []
        self._until_s = 0.0
        self._silent: set[str] = set()

    async def collect(self, replicas: Sequence[Replica], model: str | None) -> list[Metric]:
        """Current metrics of the model at the servers that take requests, at most ``keep_s`` old."""
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
            # Warn once, not at every scrape while the server stays silent.
            log = logger.debug if replica.url in self._silent else logger.warning
            log("could not read the engine metrics of %s: %s", replica.url, error)
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
