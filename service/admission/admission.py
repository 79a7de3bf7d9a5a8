"""Admission control: requests wait in a bounded fair queue or are rejected with a time to retry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import monotonic

from service.admission.fair_queue import FairQueue, Place
from service.admission.token_bucket import TokenBucket
from service.context.caller import Caller, current_caller
from vbon.errors import InvalidInputError, OverloadedError

# Bounds of the suggested time to retry, and its value before any request has finished.
LEAST_RETRY_S, MOST_RETRY_S, UNMEASURED_RETRY_S = 1.0, 60.0, 5.0
NO_LIMIT = 2**62  # tokens


class Entry:
    """An admitted request, which reports how many tokens it decoded."""

    def __init__(self) -> None:
        self.decoded: int | None = None

    def spent(self, tokens: int) -> None:
        """Report the tokens decoded in all. Without a report, the largest possible number is charged."""
        self.decoded = tokens


class Admission:
    """Admits up to ``running`` sequences and ``running_tokens`` tokens; up to ``waiting`` sequences wait.

    A request counts as its sequences, and as its sequences times ``max_tokens`` tokens. Against the tokens a
    minute of its key, it counts as all candidates that it may draw, at once or one after another, times
    ``max_tokens``. :class:`service.admission.fair_queue.FairQueue` decides which request is next.

    With ``charges=False`` it only orders requests, and the callers' tokens a minute are left alone. Then
    ``counted`` and ``limit_name`` are the words of its errors for what waits, and for the limit of that.

    No waiting or running request is ever dropped for a later one. Instead, a key may have at most twice
    as many sequences waiting as the queue has free places, so no key can fill the queue alone.
    """

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        running_tokens: int = NO_LIMIT,
        max_queue_s: float | None = None,
        charges: bool = True,
        counted: str = "sequences",
        limit_name: str = "limits.waiting_sequences",
    ) -> None:
        self._charges = charges
        self._counted, self._limit_name = counted, limit_name
        self._queue = FairQueue(sequences=running, tokens=running_tokens)
        self._capacity, self._max_waiting, self._max_queue_s = running, waiting, max_queue_s
        self._futures: dict[Place, asyncio.Future[None]] = {}
        self._buckets: dict[str, TokenBucket] = {}
        self._hold_s: float | None = None

    @property
    def running(self) -> int:
        """Sequences admitted."""
        return self._queue.running

    @property
    def running_tokens(self) -> int:
        """The most tokens that the admitted sequences may decode."""
        return self._queue.running_tokens

    @property
    def waiting(self) -> int:
        """Sequences waiting."""
        return self._queue.waiting

    @property
    def full(self) -> bool:
        """True if any request would be rejected: all places and all waiting places are taken."""
        return self.running >= self._capacity and self.waiting >= self._max_waiting

    @asynccontextmanager
    async def enter(
        self,
        sequences: int,
        priority: int = 0,
        *,
        max_tokens: int = 1,
        candidates: int | None = None,
        unit: str = "candidates",
        field: str = "n",
    ) -> AsyncGenerator[Entry, None]:
        """Wait for ``sequences`` places and hold them for the length of the block.

        Args:
            priority: order among the caller's own requests; lower is earlier.
            candidates: all candidates that may be drawn, if more than ``sequences``.
            unit: the name of what is counted, for errors.
            field: the request's field that gives their number.

        Raises:
            OverloadedError: at once, if the queue is too full or the caller's tokens a minute are used up.
            InvalidInputError: the request is larger than the caller's key ever allows.
        """
        caller = current_caller.get()
        # A request that fails or is cancelled reports no decoded tokens, so the largest number is charged.
        candidates = max(sequences, candidates or 0)
        most = candidates * max_tokens
        if self._charges:
            self._check(caller, sequences, candidates, max_tokens, unit, field)
            self._take(caller, most)
        entry = Entry()
        entry.decoded = 0
        try:
            place = await self._acquire(caller, sequences, sequences * max_tokens, priority)
            entry.decoded = None
            begun_s = monotonic()
            try:
                yield entry
            finally:
                self._measure(place, monotonic() - begun_s)
                self._leave(place)
        finally:
            if entry.decoded is not None and caller.name in self._buckets:
                self._buckets[caller.name].give_back(most - entry.decoded, monotonic())

    def _check(
        self,
        caller: Caller,
        sequences: int,
        candidates: int,
        max_tokens: int,
        unit: str,
        field: str,
    ) -> None:
        most, a_minute = caller.max_sequences, caller.tokens_per_minute
        if most is not None and sequences > most:
            raise InvalidInputError(
                f"asked for {sequences} {unit} at once; key {caller.name!r} allows at most {most}",
                field=field,
            )
        if a_minute is not None and (tokens := candidates * max_tokens) > a_minute:
            raise InvalidInputError(
                f"{candidates} {unit} of up to {max_tokens} tokens are {tokens} tokens; "
                f"key {caller.name!r} allows {a_minute} tokens a minute",
                field="max_tokens" if field == "n" else field,
            )

    def _take(self, caller: Caller, tokens: int) -> None:
        bucket, now_s = self._bucket_of(caller), monotonic()
        if bucket is not None and (wait_s := bucket.take(tokens, now_s)):
            raise _used_up(caller, wait_s)

    def _bucket_of(self, caller: Caller) -> TokenBucket | None:
        """The caller's tokens of this minute, or ``None`` if it has no limit."""
        a_minute = caller.tokens_per_minute
        if a_minute is None:
            self._buckets.pop(caller.name, None)
            return None
        bucket = self._buckets.get(caller.name)
        if bucket is None or bucket.tokens_per_minute != a_minute:
            bucket = self._buckets[caller.name] = TokenBucket(a_minute, monotonic())
        return bucket

    def charge(self, tokens: int) -> None:
        """Charge the current caller for work that led to no answer, up to all it has left this minute."""
        bucket = self._bucket_of(current_caller.get())
        if bucket is not None:
            bucket.lose(tokens, monotonic())

    def check_not_used_up(self) -> None:
        """Check that the current caller may have any token at all, before work is done for it.

        Raises:
            OverloadedError: its tokens a minute are used up.
        """
        caller = current_caller.get()
        bucket = self._bucket_of(caller)
        if bucket is not None and (wait_s := bucket.empty_for_s(monotonic())):
            raise _used_up(caller, wait_s)

    async def _acquire(self, caller: Caller, sequences: int, tokens: int, priority: int) -> Place:
        place = self._queue.join(caller, sequences, tokens, priority)
        self._admit()
        if place.state == "runs":
            return place
        if refusal := self._refusal(place):
            retry_after_s = self.retry_after_s()
            self._queue.leave(place)
            raise OverloadedError(refusal, retry_after_s=retry_after_s)
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures[place] = admitted
        try:
            await admitted
        except asyncio.CancelledError:
            self._futures.pop(place, None)
            self._leave(place)  # it may have been admitted in the same moment
            raise
        return place

    def _refusal(self, place: Place) -> str | None:
        """The reason to reject a request that was just put into the queue, or ``None``."""
        waiting, cost = self.waiting - place.sequences, place.sequences
        # A request larger than the queue may wait if no other does; otherwise it could never run.
        if self.waiting > self._max_waiting and (waiting or not self._max_waiting):
            return (
                f"{self.running} {self._counted} run and {waiting} wait; {cost} more would exceed the "
                f"limit of {self._max_waiting} waiting ({self._limit_name})"
            )
        own = self._queue.waiting_of(place.caller)
        if place.caller.name and waiting and own > 2 * (self._max_waiting - waiting):
            return (
                f"{own - cost} {self._counted} of key {place.caller.name!r} wait; the remaining "
                f"{self._max_waiting - waiting} places in the queue are reserved for other keys"
            )
        ahead = min(self.waiting, own * self._queue.callers_waiting())
        if self._max_queue_s is not None and self._drains_in_s(ahead) > self._max_queue_s:
            return (
                f"the wait would be about {self._drains_in_s(ahead):.1f} s, over the limit of "
                f"{self._max_queue_s:g} s (limits.max_queue_s)"
            )
        return None

    def retry_after_s(self) -> float:
        """Seconds until the requests now waiting are admitted, at the measured pace; 1 to 60."""
        if self._hold_s is None:
            return UNMEASURED_RETRY_S
        return min(MOST_RETRY_S, max(LEAST_RETRY_S, self._drains_in_s(self.waiting)))

    def _drains_in_s(self, sequences: int) -> float:
        """Seconds until ``sequences`` running ones have left; 0 before any has.

        By Little's law, running sequences leave at ``running / hold time`` a second.
        """
        return sequences * (self._hold_s or 0.0) / max(1, self.running)

    def _measure(self, place: Place, hold_s: float) -> None:
        """Update the mean hold time, a moving average over about as many sequences as run at once."""
        weight = min(1.0, place.sequences / self._capacity)
        before = hold_s if self._hold_s is None else self._hold_s
        self._hold_s = before + weight * (hold_s - before)

    def _leave(self, place: Place) -> None:
        self._queue.leave(place)
        self._admit()

    def _admit(self) -> None:
        for place in self._queue.admit():
            admitted = self._futures.pop(place, None)
            if admitted is not None and not admitted.done():
                admitted.set_result(None)


def _used_up(caller: Caller, wait_s: float) -> OverloadedError:
    return OverloadedError(
        f"key {caller.name!r} has used up its {caller.tokens_per_minute} tokens a minute",
        retry_after_s=max(LEAST_RETRY_S, wait_s),
    )
