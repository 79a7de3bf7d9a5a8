"""The row ``workers``: several front-end processes against one, on an engine that does no work."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service.bench.figures import Figure, ratios, with_unit
from service.bench.harness import Bench
from service.bench.load import LoadJob, load_in_child
from service.bench.processes import free_port, running, wait_until_healthy
from vbon.maths.statistics import median_range

WORKERS = (1, 2, 4)
# Load generators: one process sends about as many requests a second as one front end answers.
_CLIENTS, _IN_FLIGHT = 2, 16
_TOKENS = 4


@dataclass
class _Side:
    """A service with so many workers, and what was measured of it.

    Attributes:
        per_second: requests answered a second, in each round.
        front_ms, parent_ms: CPU time of the workers, and of the parent, for each sequence.
    """

    workers: int
    pid: int
    url: str
    per_second: list[float] = field(default_factory=list)
    front_ms: list[float] = field(default_factory=list)
    parent_ms: list[float] = field(default_factory=list)

    async def measure(self, requests: int) -> None:
        """Send requests of one sequence each, and keep what they took."""
        url = f"{self.url}/generate?mode=ref"
        body = {"prompt": "the film was", "max_tokens": _TOKENS, "score": False}
        parts = [len(range(first, requests, _CLIENTS)) for first in range(_CLIENTS)]
        jobs = [LoadJob(url, [body] * part, _IN_FLIGHT) for part in parts if part]
        before = self._cpu_s()
        found = await asyncio.gather(*(load_in_child(job) for job in jobs))
        after = self._cpu_s()
        self.per_second.append(sum(one.requests_per_second for one in found))
        spent = [(now - then) * 1e3 / requests for then, now in zip(before, after, strict=True)]
        self.parent_ms.append(spent[0])
        self.front_ms.append(spent[1])

    def _cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far of the parent, and of its workers; one process is a worker without a parent."""
        own = cpu_s([self.pid])
        if self.workers == 1:
            return 0.0, own
        return own, cpu_s(children(self.pid))

    @property
    def detail(self) -> str:
        """The measurements as text."""
        parent = f", parent {with_unit(self.parent_ms, 'ms')}" if self.workers > 1 else ""
        return (
            f"{self.workers}: {with_unit(self.per_second, 'requests/s')}, CPU of a sequence "
            f"{with_unit(self.front_ms, 'ms')}{parent}"
        )


async def workers(bench: Bench) -> list[Figure]:
    """Requests a second with several workers over those with one process, and the CPU time of a sequence."""
    settings = bench.settings
    async with AsyncExitStack() as stack:
        sides = [await stack.enter_async_context(_serving(count)) for count in WORKERS]
        for side in sides:  # the first measurement of each is thrown away
            await side.measure(settings.requests)
            side.per_second.clear()
            side.front_ms.clear()
            side.parent_ms.clear()
        for turn in range(settings.pairs):
            for side in sides if turn % 2 == 0 else reversed(sides):
                await side.measure(settings.requests)
    one, several = sides[0], sides[1:]
    figures = [
        Figure(
            f"{side.workers} workers / 1 process, requests/s ({os.cpu_count()} cores)",
            ratios(side.per_second, one.per_second),
            None,
            True,
            f"{side.detail}; {one.detail}",
        )
        for side in several
    ]
    return [
        *figures,
        Figure(
            "CPU of the front end, ms a sequence",
            median_range(one.front_ms),
            None,
            False,
            one.detail,
        ),
    ]


@asynccontextmanager
async def _serving(count: int) -> AsyncGenerator[_Side, None]:
    """A service of so many workers in processes of its own."""
    port = free_port()
    chosen = {
        "port": port,
        "workers": count,
        "policies": {"ref": "fake"},
        "reward": None,
        "default_mode": "ref",
        "store": None,
        "log_level": "warning",
    }
    command = [sys.executable, "-m", "service.bench.idle_service", json.dumps(chosen)]
    async with running(command) as (process, log):
        url = f"http://127.0.0.1:{port}"
        await wait_until_healthy(process, log, f"{url}/readyz", f"the service with {count} workers")
        yield _Side(count, process.pid, url)


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that these processes have taken (Linux)."""
    ticks = 0
    for pid in pids:
        # The name in parentheses may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The child processes of a process (Linux)."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(one) for one in text.split()]
