"""What a server holds, sampled while it works."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from time import perf_counter

import httpx
import psutil

GAUGES = {
    "tasks": "vbon:num_tasks",
    "sequences in engines": "vbon:num_engine_sequences",
    "scores waiting": "vbon:num_scores_waiting",
}


class Watch:
    """Samples of a server and, where its process is known, of that and all below it.

    Attributes:
        series: by name, (seconds since the start, value).
    """

    def __init__(self, client: httpx.AsyncClient, process: psutil.Process | None) -> None:
        self._client, self._process = client, process
        self._begun_s = perf_counter()
        self.series: dict[str, list[tuple[float, float]]] = defaultdict(list)

    async def every(self, seconds: float) -> None:
        """Sample until cancelled."""
        while True:
            await self.sample()
            await asyncio.sleep(seconds)

    async def sample(self) -> None:
        """Take one of each."""
        if self._process is not None:
            self._sample_processes(self._process)
        with suppress(httpx.HTTPError):
            lines = (await self._client.get("/metrics")).text.splitlines()
            for name, metric in GAUGES.items():
                values = [float(line.split()[-1]) for line in lines if line.startswith(metric)]
                self._add(name, sum(values))

    def _sample_processes(self, process: psutil.Process) -> None:
        with suppress(psutil.NoSuchProcess):
            for number, one in enumerate([process, *process.children(recursive=True)]):
                name = f"{one.name()[:20]} {number}"
                self._add(f"{name}: RSS, MB", one.memory_info().rss / 1e6)
                self._add(f"{name}: file descriptors", one.num_fds())
                self._add(f"{name}: threads", one.num_threads())

    def _add(self, name: str, value: float) -> None:
        self.series[name].append((perf_counter() - self._begun_s, value))
