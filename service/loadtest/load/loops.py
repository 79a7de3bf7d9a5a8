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
class Recorder:
    """Sender of the requests of one block, which also records the observations.

    Attributes:
        first_prompt: index of the first prompt; the others follow in order, and then again from the first.
        hopeless: returns True if the observations so far mean that the block should be given up.
    """

    client: LoadClient
    block: Block
    prompts: Sequence[str]
    length: BlockLength
    first_prompt: int
    on_seen: Callable[[Observation], None]
    hopeless: Callable[[Sequence[Observation]], bool] = lambda _: False

    async def closed(self) -> BlockRecord:
        """Run a closed loop: each worker sends its next request when the last one was answered."""
        state = _RunningBlock(self)
        width = int(self.block.cell.load.value)

        async def worker(number: int) -> None:
            await asyncio.sleep(self.length.ramp_s * number / width)
            while not state.over(state.now):
                await state.send(state.now)

        await asyncio.gather(*(worker(number) for number in range(width)))
        return state.record()

    async def opened(self, units: Iterator[float], max_in_flight: int) -> BlockRecord:
        """Run an open loop: send requests when they are due; those that wait for a connection are late."""
        state = _RunningBlock(self)
        room = asyncio.Semaphore(max_in_flight)
        in_flight: set[asyncio.Task[None]] = set()

        async def send(due: float) -> None:
            try:
                await state.send(due)
            finally:
                room.release()

        for due in due_times(units, self.block.cell.load.value, self.length.ramp_s):
            if state.over(due):
                break
            if self.hopeless(state.seen):
                for task in in_flight:
                    task.cancel()
                break
            await asyncio.sleep(due - state.now)
            await room.acquire()
            task = asyncio.create_task(send(due))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
        await asyncio.gather(*in_flight, return_exceptions=self.hopeless(state.seen))
        return state.record()


class _RunningBlock:
    """The state of a running block."""

    def __init__(self, recorder: Recorder) -> None:
        self._of = recorder
        self._begun = perf_counter()
        self._cpu = time.process_time()
        self._started = datetime.now(UTC)
        self._sent = self._measured = 0
        self.seen: list[Observation] = []

    @property
    def now(self) -> float:
        """Seconds since the start of the block."""
        return perf_counter() - self._begun

    def over(self, due: float) -> bool:
        """True if a request that is due at this moment is too late to be sent."""
        return self._of.length.over(due, self._measured)

    async def send(self, due: float) -> None:
        """Send one request with the next prompt."""
        of = self._of
        index = (of.first_prompt + self._sent) % len(of.prompts)
        self._sent += 1
        measured = due >= of.length.lead_s
        self._measured += measured
        seen = Observation(prompt=index, due_s=due, sent_s=self.now, measured=measured)
        await of.client.send(of.block.cell.variant, of.prompts[index], seen, self._begun)
        self.seen.append(seen)
        of.on_seen(seen)

    def record(self) -> BlockRecord:
        """The record of the block; with a number of requests, its window ends at the last answer."""
        length, now = self._of.length, self.now
        end = length.lead_s + length.seconds
        if length.requests is not None:
            end = max((one.done_s for one in self.seen if one.measured), default=now)
        return BlockRecord(
            key=self._of.block.key,
            cell=self._of.block.cell.key,
            round=self._of.block.round,
            started=self._started.isoformat(timespec="milliseconds"),
            window_s=(length.lead_s, end),
            client_cpu=(time.process_time() - self._cpu) / max(now, end),
            observations=sorted(self.seen, key=lambda one: one.due_s),
        )
