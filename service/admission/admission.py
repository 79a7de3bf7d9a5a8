"""Admission control: requests wait in a bounded fair queue or are rejected with a time to retry."""

from __future__ import annotations

import asyncio
from time import monotonic

from service.admission.asks import Admits, Ask, Lease, check_allowed
from service.admission.fair_queue import FairQueue, Place
from service.admission.token_bucket import TokenBucket
from service.context.caller import Caller, current_caller
from vbon.errors import OverloadedError

# Bounds of the suggested time to retry, and its value before any request has finished.
LEAST_RETRY_S, MOST_RETRY_S, UNMEASURED_RETRY_S = 1.0, 60.0, 5.0
NO_LIMIT = 2**62  # tokens


class Admission(Admits):
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
        self._waiting: dict[Place, Lease] = {}
        self._buckets: dict[str, TokenBucket] = {}
        self._hold_s: float | None = None
        self._closed = False

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
    def own_running(self) -> int:
        """Sequences admitted."""
        return self.running

    @property
    def own_waiting(self) -> int:
        """Sequences waiting."""
        return self.waiting

    @property
    def shared(self) -> bool:
        """True: there is no other front end."""
        return True

    @property
    def full(self) -> bool:
        """True if any request would be rejected: all places and all waiting places are taken."""
        return self.running >= self._capacity and self.waiting >= self._max_waiting

    async def start(self) -> None:
        """Do nothing: there is nobody to connect to."""

    async def stop(self) -> None:
        """Do nothing, as :meth:`start`."""

    def close(self) -> None:
        """Let requests join the queue, and admit none until :meth:`open`."""
        self._closed = True

    def open(self) -> None:
        """Admit requests again."""
        self._closed = False
        self._admit()

    async def admit(self, ask: Ask) -> Lease:
        """Wait for the places of a request; the caller must release the lease.

        Raises:
            OverloadedError, InvalidInputError: as :meth:`enter`.
        """
        lease = self.request(ask)
        try:
            await lease.decided()
        except asyncio.CancelledError:
            # It may have been admitted in the same moment.
            self.release(lease, 0, used=False)
            raise
        return lease

    def request(self, ask: Ask) -> Lease:
        """Put a request into the queue, from which it may have been admitted on return.

        Raises:
            OverloadedError: the queue is too full, or the caller's tokens a minute are used up.
            InvalidInputError: the request is larger than the caller's key ever allows.
        """
        if self._charges:
            check_allowed(ask)
            self._take(ask.caller, ask.most_tokens)
        tokens = ask.sequences * ask.max_tokens
        place = self._queue.join(ask.caller, ask.sequences, tokens, ask.priority)
        lease = self._waiting[place] = Lease(ask, place)
        self._admit()
        if not lease.runs and (refusal := self._refusal(place)):
            error = OverloadedError(refusal, retry_after_s=self.retry_after_s())
            # Nobody can be admitted instead: before it came, nobody could be either.
            del self._waiting[place]
            self._queue.leave(place)
            self.give_back(ask, 0)
            raise error
        return lease

    def adopt(self, ask: Ask, *, charged: bool = False) -> Lease:
        """Count a request that runs already, even if there is no room for it.

        Args:
            charged: whether its tokens were taken from the caller here already.
        """
        bucket = self._bucket_of(ask.caller) if self._charges and not charged else None
        if bucket is not None:
            bucket.give_back(-ask.most_tokens, monotonic())
        tokens = ask.sequences * ask.max_tokens
        place = self._queue.start(ask.caller, ask.sequences, tokens, ask.priority)
        lease = Lease(ask, place)
        lease.admit(monotonic())
        return lease

    def release(self, lease: Lease, decoded: int | None, *, used: bool = True) -> None:
        """Give back the places of a request that has ended, or no longer waits; once, and then no more.

        Args:
            decoded: the tokens decoded in all; ``None`` charges the largest possible number.
            used: whether the request ran, so that the time it held its places counts.
        """
        if lease.place.state == "left":
            return
        if used and lease.admitted_s is not None:
            self._measure(lease.place, monotonic() - lease.admitted_s)
        self._waiting.pop(lease.place, None)
        self._queue.leave(lease.place)
        lease.end()
        self._admit()
        if decoded is not None:
            self.give_back(lease.ask, decoded)

    def give_back(self, ask: Ask, decoded: int) -> None:
        """Give a caller back the tokens that were taken for a request and not decoded."""
        if ask.caller.name in self._buckets:
            self._buckets[ask.caller.name].give_back(ask.most_tokens - decoded, monotonic())

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
        self.charge_to(current_caller.get(), tokens)

    def charge_to(self, caller: Caller, tokens: int) -> None:
        """Charge a caller, as :meth:`charge`."""
        bucket = self._bucket_of(caller)
        if bucket is not None:
            bucket.lose(tokens, monotonic())

    async def check_not_used_up(self) -> None:
        """Check that the current caller may have any token at all, before work is done for it.

        Raises:
            OverloadedError: its tokens a minute are used up.
        """
        self.check_left(current_caller.get())

    def check_left(self, caller: Caller) -> None:
        """Check that a caller may have any token at all, as :meth:`check_not_used_up`."""
        bucket = self._bucket_of(caller)
        if bucket is not None and (wait_s := bucket.empty_for_s(monotonic())):
            raise _used_up(caller, wait_s)

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

    def _admit(self) -> None:
        if self._closed:
            return
        now_s = monotonic()
        for place in self._queue.admit():
            self._waiting.pop(place).admit(now_s)


def _used_up(caller: Caller, wait_s: float) -> OverloadedError:
    return OverloadedError(
        f"key {caller.name!r} has used up its {caller.tokens_per_minute} tokens a minute",
        retry_after_s=max(LEAST_RETRY_S, wait_s),
    )
