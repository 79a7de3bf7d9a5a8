"""Load on one side, in a process of its own: requests in a closed loop, and when the first token came.

``python -m service.fleet.bench.load`` reads one :class:`Job` as JSON from standard input and writes a
:class:`Answered`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from service.bench.wire import SideError, Work, closed_loop, run_in_child
from service.loadtest.load.connection import ConnectionPool


@dataclass(frozen=True, slots=True)
class Job:
    """The same request, sent so many times.

    Attributes:
        url: with path and query.
        in_flight: requests at a time.
    """

    url: str
    body: dict[str, Any]
    requests: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The times of a job: of all of it, to each first piece of an answer, and to each end."""

    seconds: float
    first_s: list[float]
    whole_s: list[float]

    @property
    def per_second(self) -> float:
        """Requests answered a second."""
        return len(self.whole_s) / self.seconds

    @property
    def first_ms(self) -> float:
        """The median time to the first piece of an answer."""
        return 1000 * median(self.first_s)

    @property
    def whole_ms(self) -> float:
        """The median time to the end of an answer."""
        return 1000 * median(self.whole_s)


async def run_job(job: Job) -> Answered:
    """Send the requests.

    Raises:
        SideError: one was not answered with 200.
    """
    address = urlsplit(job.url)
    target = f"{address.path}?{address.query}"
    body = json.dumps(job.body).encode()
    first: list[float] = []
    whole: list[float] = []

    @asynccontextmanager
    async def worker() -> AsyncGenerator[Work[tuple[int, None]], None]:
        pool = ConnectionPool(job.url)

        async def send(_: tuple[int, None]) -> None:
            begun = perf_counter()
            async with pool.post(target, body) as response:
                pieces = 0
                async for piece in response.pieces():
                    # Comments keep a stream open; they are no part of an answer.
                    if not pieces and not piece.startswith(b":"):
                        first.append(perf_counter() - begun)
                        pieces += 1
                if response.status != 200:
                    raise SideError(f"{job.url} answered {response.status}")
            whole.append(perf_counter() - begun)

        yield send
        await pool.close()

    seconds = await closed_loop([None] * job.requests, job.in_flight, worker)
    return Answered(seconds, first, whole)


async def job_in_child(job: Job) -> Answered:
    """Run a job in a process of its own.

    Raises:
        SideError: the process failed, or a request was answered with an error.
    """
    command = [sys.executable, "-m", "service.fleet.bench.load"]
    return Answered(**await run_in_child(command, asdict(job)))


def main() -> None:
    """Read one job from standard input, run it, and write its times."""
    job = Job(**json.load(sys.stdin))
    json.dump(asdict(asyncio.run(run_job(job))), sys.stdout)


if __name__ == "__main__":
    main()
