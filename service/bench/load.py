"""Closed-loop HTTP load in a process of its own, so that it does not use the server's event loop.

``python -m service.bench.load`` reads one :class:`LoadJob` as JSON from standard input and writes one
:class:`LoadResult`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from service.bench.wire import SideError, Work, closed_loop, connected, run_in_child


@dataclass(frozen=True, slots=True)
class LoadJob:
    """Requests to send.

    Attributes:
        url: with path and query.
        bodies: JSON bodies, sent in order; each is one request.
        concurrency: requests in flight.
    """

    url: str
    bodies: Sequence[Mapping[str, Any]]
    concurrency: int


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Answers to a load. Lists hold answered requests only, in the order of their bodies.

    Attributes:
        seconds: from the first request to the last answer.
        rewards: ``None`` where an answer has no reward.
        errors: number of requests by status other than 200; they are in none of the lists.
    """

    seconds: float
    latencies_s: list[float]
    generated_tokens: list[int]
    returned_tokens: list[int]
    texts: list[str]
    rewards: list[float | None]
    rerank_ms: list[float]
    scoring_ms: list[float]
    errors: dict[str, int]

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated a second, including those of discarded candidates."""
        return sum(self.generated_tokens) / self.seconds

    @property
    def requests_per_second(self) -> float:
        """Requests answered a second."""
        return len(self.latencies_s) / self.seconds


async def run_load(job: LoadJob) -> LoadResult:
    """Send all requests, ``concurrency`` at a time, each worker over a connection that stays open."""
    found: dict[int, tuple[float, dict[str, Any]]] = {}
    errors: dict[str, int] = {}

    @asynccontextmanager
    async def worker() -> AsyncGenerator[Work[tuple[int, bytes]], None]:
        async with connected(job.url) as (connection,):

            async def send(entry: tuple[int, bytes]) -> None:
                index, body = entry
                begun = perf_counter()
                status, content = await connection.post(body)
                if status == 200:
                    found[index] = (perf_counter() - begun, json.loads(content))
                else:
                    errors[str(status)] = errors.get(str(status), 0) + 1

            yield send

    bodies = [json.dumps(body).encode() for body in job.bodies]
    seconds = await closed_loop(bodies, job.concurrency, worker)
    ordered = [found[index] for index in sorted(found)]
    answers = [answer for _, answer in ordered]
    return LoadResult(
        seconds=seconds,
        latencies_s=[latency for latency, _ in ordered],
        generated_tokens=[answer["usage"]["generated_tokens"] for answer in answers],
        returned_tokens=[answer["usage"]["returned_tokens"] for answer in answers],
        texts=[answer["text"] for answer in answers],
        rewards=[answer["reward"] for answer in answers],
        rerank_ms=[answer["timings_ms"]["rerank"] for answer in answers],
        scoring_ms=[answer["timings_ms"]["scoring"] for answer in answers],
        errors=errors,
    )


async def load_in_child(job: LoadJob) -> LoadResult:
    """Run :func:`run_load` in a child process.

    Raises:
        SideError: the process failed, or a request was answered with an error.
    """
    command = [sys.executable, "-m", "service.bench.load"]
    result = LoadResult(**await run_in_child(command, asdict(job)))
    if result.errors:
        raise SideError(f"{job.url} answered with errors: {result.errors}")
    return result


def main() -> None:
    """Read one job from standard input, run it, and write the result to standard output."""
    job = LoadJob(**json.load(sys.stdin))
    json.dump(asdict(asyncio.run(run_load(job))), sys.stdout)


if __name__ == "__main__":
    main()
