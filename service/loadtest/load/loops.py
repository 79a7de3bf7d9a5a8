"""Drives one block of load, as a closed or an open loop, for a time or a number of requests.

The first ``lead_s`` seconds of a block, its ramp and warm-up, load the server but are not measured. After the
last measured request nothing more is sent, and the block ends when all answers have arrived.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter

from service.loadtest.load.arrivals import due_times
from service.loadtest.load.client import LoadClient
from service.loadtest.observation import BlockRecord, Observation
from service.loadtest.plan import Block
from vbon.prompts import Prompt


@dataclass(frozen=True, slots=True)
class BlockLength:
    """The length of a block.

    Attributes:
        seconds: length of the measured part, unless ``requests`` is set.
        requests: number of measured requests; ``None`` to measure for a time instead.
    """

    ramp_s: float
    warmup_s: float
    seconds: float
    requests: int | None = None

    @property
    def lead_s(self) -> float:
        """Seconds at the start that are not measured."""
        return self.ramp_s + self.warmup_s

    def over(self, now: float, measured: int) -> bool:
        """True if nothing more is to be sent after ``measured`` measured requests."""
        if self.requests is not None:
            return measured >= self.requests
        return now >= self.lead_s + self.seconds


@dataclass(slots=True)
class BlockRunner:
    """Runner of one block: sends its requests and records the observations.

    Attributes:
        first_prompt: index of the first prompt; the others follow in order, and then again from the first.
        hopeless: returns True if the observations so far mean that the block should be given up.
    """

    client: LoadClient
    block: Block
    prompts: Sequence[Prompt]
    length: BlockLength
    first_prompt: int
    on_seen: Callable[[Observation], None]
    hopeless: Callable[[Sequence[Observation]], bool] = lambda _: False

    async def run_closed(self) -> BlockRecord:
        """Run a closed loop: each worker sends its next request when the last one was answered."""
        running = _RunningBlock(self)
        width = int(self.block.cell.load.value)

        async def worker(number: int) -> None:
            await asyncio.sleep(self.length.ramp_s * number / width)
            while not running.over(running.now):
                await running.send(running.now)

        await asyncio.gather(*(worker(number) for number in range(width)))
        return running.record()

    async def run_open(self, units: Iterator[float], max_in_flight: int) -> BlockRecord:
        """Run an open loop: send requests when they are due; those that wait for a connection are late."""
        running = _RunningBlock(self)
        room = asyncio.Semaphore(max_in_flight)
        in_flight: set[asyncio.Task[None]] = set()

        async def send(due: float) -> None:
            try:
                await running.send(due)
            finally:
                room.release()

        for due in due_times(units, self.block.cell.load.value, self.length.ramp_s):
            if running.over(due):
                break
            if self.hopeless(running.seen):
                for task in in_flight:
                    task.cancel()
                break
            await asyncio.sleep(due - running.now)
            await room.acquire()
            task = asyncio.create_task(send(due))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
        await asyncio.gather(*in_flight, return_exceptions=self.hopeless(running.seen))
        return running.record()


class _RunningBlock:
    """The state of a running block."""

    def __init__(self, runner: BlockRunner) -> None:
        self._runner = runner
        self._started_at = perf_counter()
        self._cpu = time.process_time()
        self._started_utc = datetime.now(UTC)
        self._sent = self._measured = 0
        self.seen: list[Observation] = []

    @property
    def now(self) -> float:
        """Seconds since the start of the block."""
        return perf_counter() - self._started_at

    def over(self, due: float) -> bool:
        """True if a request that is due at this moment is too late to be sent."""
        return self._runner.length.over(due, self._measured)

    async def send(self, due: float) -> None:
        """Send one request with the next prompt."""
        runner = self._runner
        index = (runner.first_prompt + self._sent) % len(runner.prompts)
        self._sent += 1
        measured = due >= runner.length.lead_s
        self._measured += measured
        seen = Observation(prompt=index, due_s=due, sent_s=self.now, measured=measured)
        await runner.client.send(
            runner.block.cell.variant, runner.prompts[index], seen, self._started_at
        )
        self.seen.append(seen)
        runner.on_seen(seen)

    def record(self) -> BlockRecord:
        """The record of the block; with a number of requests, its window ends at the last answer."""
        length, now = self._runner.length, self.now
        end = length.lead_s + length.seconds
        if length.requests is not None:
            end = max((one.done_s for one in self.seen if one.measured), default=now)
        return BlockRecord(
            key=self._runner.block.key,
            cell=self._runner.block.cell.key,
            round=self._runner.block.round,
            started=self._started_utc.isoformat(timespec="milliseconds"),
            window_s=(length.lead_s, end),
            client_cpu=(time.process_time() - self._cpu) / max(now, end),
            observations=sorted(self.seen, key=lambda one: one.due_s),
        )
