"""A closed-loop HTTP load: its own process, so that it does not run on the server's event loop.

``python -m service.bench.load`` reads one :class:`Job` as JSON from standard input and writes one
:class:`Result`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from service.connection import Connection


@dataclass(frozen=True, slots=True)
class Job:
    """What to send.

    Attributes:
        url: with path and query.
        bodies: JSON bodies, sent in order; each is one request.
        concurrency: requests in flight.
    """

    url: str
    bodies: Sequence[Mapping[str, Any]]
    concurrency: int


@dataclass(frozen=True, slots=True)
class Result:
    """What came back; lists hold answered requests only, in the order of their bodies.

    Attributes:
        seconds: from the first request to the last answer.
        rewards: ``None`` where the answer has none.
        errors: requests by status that was not 200; those are in nothing else.
    """

    seconds: float
    latencies_s: list[float]
    generated_tokens: list[int]
    returned_tokens: list[int]
    rewards: list[float | None]
    rerank_ms: list[float]
    scoring_ms: list[float]
    errors: dict[str, int]

    @property
    def tokens_per_second(self) -> float:
        """Generated, discarded ones included."""
        return sum(self.generated_tokens) / self.seconds

    @property
    def requests_per_second(self) -> float:
        """Answered."""
        return len(self.latencies_s) / self.seconds


async def run_load(job: Job) -> Result:
    """Send everything, ``concurrency`` at a time, each over a connection that is kept open."""
    found: dict[int, tuple[float, dict[str, Any]]] = {}
    errors: dict[str, int] = {}
    bodies = enumerate([json.dumps(body).encode() for body in job.bodies])
    address = urlsplit(job.url)
    target = address.path + (f"?{address.query}" if address.query else "")

    async def worker() -> None:
        connection = await Connection.open(address)
        try:
            for index, body in bodies:
                begun = perf_counter()
                response = await connection.post(target, body)
                content = await response.read()
                if response.status == 200:
                    found[index] = (perf_counter() - begun, json.loads(content))
                else:
                    errors[str(response.status)] = errors.get(str(response.status), 0) + 1
        finally:
            await connection.close()

    begun = perf_counter()
    await asyncio.gather(*(worker() for _ in range(min(job.concurrency, len(job.bodies)))))
    seconds = perf_counter() - begun
    ordered = [found[index] for index in sorted(found)]
    answers = [answer for _, answer in ordered]
    return Result(
        seconds=seconds,
        latencies_s=[latency for latency, _ in ordered],
        generated_tokens=[answer["usage"]["generated_tokens"] for answer in answers],
        returned_tokens=[answer["usage"]["returned_tokens"] for answer in answers],
        rewards=[answer["reward"] for answer in answers],
        rerank_ms=[answer["timings_ms"]["rerank"] for answer in answers],
        scoring_ms=[answer["timings_ms"]["scoring"] for answer in answers],
        errors=errors,
    )


async def load_elsewhere(job: Job) -> Result:
    """:func:`run_load` in a process of its own.

    Raises:
        RuntimeError: that process failed, or not every request was answered.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service.bench.load",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate(json.dumps(asdict(job)).encode())
    if process.returncode != 0:
        raise RuntimeError(f"the load process ended with status {process.returncode}")
    result = Result(**json.loads(output))
    if result.errors:
        raise RuntimeError(f"{job.url} answered with errors: {result.errors}")
    return result


def main() -> None:
    """One job from standard input."""
    job = Job(**json.load(sys.stdin))
    json.dump(asdict(asyncio.run(run_load(job))), sys.stdout)


if __name__ == "__main__":
    main()
