"""An engine that only takes time, by the step times that were measured on a real one."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vbon.engine.affinity import Prefix, prefixes

# Tokens by which an end may miss a step through rounding.
_ROUNDING = 1e-6


class ServiceTimes(BaseModel):
    """The times of one engine.

    The time of a decoding step between two measured numbers of sequences is on the line through both, and
    beyond the last one on the line through the last two.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str = Field(description="engine, model and machine that were measured")
    step_ms: dict[int, float] = Field(
        min_length=2, description="time of a decoding step by the sequences that are decoded"
    )
    prefill_ms: float = Field(ge=0, description="time of each prompt token that is not cached, ms")

    @model_validator(mode="after")
    def _positive(self) -> ServiceTimes:
        if min(self.step_ms) < 1 or min(self.step_ms.values()) <= 0:
            raise ValueError("step_ms must give positive times for positive numbers of sequences")
        return self

    def faster(self, factor: float) -> ServiceTimes:
        """The times of an engine that is so many times as fast."""
        steps = {sequences: ms / factor for sequences, ms in self.step_ms.items()}
        return self.model_copy(update={"step_ms": steps, "prefill_ms": self.prefill_ms / factor})

    def step_s(self, sequences: int) -> float:
        """Seconds of one step that decodes so many sequences."""
        known = sorted(self.step_ms.items())
        place = bisect_left(known, (sequences, 0.0))
        (low, low_ms), (high, high_ms) = (
            known[max(0, min(place, len(known) - 1) - 1)],
            known[max(1, min(place, len(known) - 1))],
        )
        share = (sequences - low) / (high - low)
        return max(low_ms + share * (high_ms - low_ms), known[0][1]) / 1e3


@dataclass(slots=True)
class _Group:
    """The sequences of one request."""

    prompt: tuple[Prefix, ...]
    prompt_tokens: int
    left: int
    done: asyncio.Future[None]
    computed: bool = False


class SimulatedEngine:
    """Decodes up to ``most`` sequences at once, one token of each in a step; others wait their turn.

    A prompt's tokens that are not in its prefix cache stop decoding for their time. The candidates of a
    request compute their prompt once.

    Attributes:
        computed: prompt tokens that were computed.

    Args:
        cache_tokens: prompt tokens that the prefix cache holds.
    """

    def __init__(self, times: ServiceTimes, most: int, cache_tokens: int) -> None:
        self.computed = 0
        self._steps = [0.0, *(times.step_s(sequences) for sequences in range(1, most + 1))]
        self._prefill_s, self._most = times.prefill_ms / 1e3, most
        self._cache: OrderedDict[bytes, int] = OrderedDict()
        self._cache_tokens, self._cached_tokens = cache_tokens, 0
        self._waiting: deque[tuple[_Group, int]] = deque()
        self._running: list[tuple[float, int, _Group]] = []
        self._numbers = count()
        # Tokens that a sequence decoded since the start would have, and the prefill that stops them now.
        self._decoded, self._pause_s, self._at_s = 0.0, 0.0, 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def _step_s(self) -> float:
        return self._steps[len(self._running)]

    async def decode(self, prompt_token_ids: Sequence[int], lengths: Sequence[int]) -> None:
        """Decode a sequence of each of these lengths; returns when the last one has ended."""
        loop = asyncio.get_running_loop()
        group = _Group(
            prefixes(prompt_token_ids),
            len(prompt_token_ids),
            len(lengths),
            loop.create_future(),
        )
        self._waiting.extend((group, length) for length in lengths)
        self._go_on(loop)
        await group.done

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bring the engine to the present, end what has ended, and begin what has room."""
        self._advance(loop.time())
        while self._running and self._running[0][0] <= self._decoded + _ROUNDING:
            group = heappop(self._running)[2]
            group.left -= 1
            if not group.left and not group.done.done():
                group.done.set_result(None)
        while self._waiting and len(self._running) < self._most:
            group, length = self._waiting.popleft()
            self._pause_s += self._prefill(group) * self._prefill_s
            heappush(self._running, (self._decoded + length, next(self._numbers), group))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._running:
            left_s = self._pause_s + (self._running[0][0] - self._decoded) * self._step_s
            self._timer = loop.call_at(self._at_s + left_s, self._go_on, loop)

    def _advance(self, now_s: float) -> None:
        elapsed = now_s - self._at_s
        paused = min(elapsed, self._pause_s)
        self._pause_s -= paused
        if self._running:
            self._decoded += (elapsed - paused) / self._step_s
        self._at_s = now_s

    def _prefill(self, group: _Group) -> int:
        """The prompt tokens that have to be computed for the next sequence of a group."""
        if group.computed:
            return 0
        group.computed = True
        held = next((one.tokens for one in reversed(group.prompt) if one.digest in self._cache), 0)
        missing = max(1, group.prompt_tokens - held)  # the last one is computed in any case
        self._remember(group.prompt)
        self.computed += missing
        return missing

    def _remember(self, prompt: Sequence[Prefix]) -> None:
        before = 0
        for one in prompt:
            if one.digest not in self._cache:
                self._cached_tokens += one.tokens - before
            self._cache[one.digest] = one.tokens - before
            before = one.tokens
        # The shorter prefixes are used last, and forgotten last.
        for one in reversed(prompt):
            self._cache.move_to_end(one.digest)
        while self._cached_tokens > self._cache_tokens and self._cache:
            self._cached_tokens -= self._cache.popitem(last=False)[1]
