"""Requests for places: what is asked for, what is held, and the interface of whoever admits."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from service.admission.fair_queue import Place
from service.context.caller import Caller, current_caller
from vbon.errors import InvalidInputError


class Entry:
    """An admitted request, which reports how many tokens it decoded."""

    def __init__(self) -> None:
        self.decoded: int | None = None

    def spent(self, tokens: int) -> None:
        """Report the tokens decoded in all. Without a report, the largest possible number is charged."""
        self.decoded = tokens


@dataclass(frozen=True, slots=True)
class Ask:
    """The places and tokens that a request asks for.

    Attributes:
        priority: order among the caller's own requests; lower is earlier.
        candidates: all candidates that may be drawn; at least ``sequences``.
        unit: the name of what is counted, for errors.
        field: the request's field that gives their number.
    """

    caller: Caller
    sequences: int
    priority: int = 0
    max_tokens: int = 1
    candidates: int = 1
    unit: str = "candidates"
    field: str = "n"

    @property
    def most_tokens(self) -> int:
        """The largest number of tokens that the request can decode."""
        return self.candidates * self.max_tokens


def check_allowed(ask: Ask) -> None:
    """Check that the caller's key allows a request of this size at all.

    Raises:
        InvalidInputError: it does not.
    """
    most, a_minute = ask.caller.max_sequences, ask.caller.tokens_per_minute
    if most is not None and ask.sequences > most:
        raise InvalidInputError(
            f"asked for {ask.sequences} {ask.unit} at once; key {ask.caller.name!r} allows at most {most}",
            field=ask.field,
        )
    if a_minute is not None and (tokens := ask.most_tokens) > a_minute:
        raise InvalidInputError(
            f"{ask.candidates} {ask.unit} of up to {ask.max_tokens} tokens are {tokens} tokens; "
            f"key {ask.caller.name!r} allows {a_minute} tokens a minute",
            field="max_tokens" if ask.field == "n" else ask.field,
        )


class Lease:
    """The places of one request, which waits for them, has them, or has given them back.

    Attributes:
        admitted_s: :func:`time.monotonic` of admission; ``None`` before.
    """

    def __init__(self, ask: Ask, place: Place) -> None:
        self.ask, self.place = ask, place
        self.admitted_s: float | None = None
        self._decided: asyncio.Future[None] | None = None

    @property
    def runs(self) -> bool:
        """True if the request was admitted and has not ended."""
        return self.place.state == "runs"

    async def decided(self) -> None:
        """Wait until the request is admitted, or has left the queue without that: see :attr:`runs`."""
        if self.place.state == "waits":
            self._decided = asyncio.get_running_loop().create_future()
            await self._decided

    def admit(self, now_s: float) -> None:
        """Let the request run from now on."""
        self.admitted_s = now_s
        self.end()

    def end(self) -> None:
        """End the wait for the decision."""
        if self._decided is not None and not self._decided.done():
            self._decided.set_result(None)


class Admits(ABC):
    """The interface of what admits requests: in this process, or for several front ends."""

    @property
    @abstractmethod
    def running(self) -> int:
        """Sequences admitted, those of all front ends."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Sequences waiting, those of all front ends."""

    @property
    @abstractmethod
    def own_running(self) -> int:
        """Sequences admitted, those of this front end alone."""

    @property
    @abstractmethod
    def own_waiting(self) -> int:
        """Sequences waiting, those of this front end alone."""

    @property
    @abstractmethod
    def shared(self) -> bool:
        """True if the limits hold over all front ends, and not only over this one."""

    @property
    @abstractmethod
    def full(self) -> bool:
        """True if any request would be rejected: all places and all waiting places are taken."""

    @property
    def all_per_own(self) -> float:
        """The sequences that all front ends have admitted for each one of this front end; at least 1."""
        return max(1.0, self.running / self.own_running) if self.own_running else 1.0

    @abstractmethod
    def retry_after_s(self) -> float:
        """Seconds until the requests now waiting are admitted, at the measured pace; 1 to 60."""

    @abstractmethod
    def charge(self, tokens: int) -> None:
        """Charge the current caller for work that led to no answer, up to all it has left this minute."""

    @abstractmethod
    async def check_not_used_up(self) -> None:
        """Check that the current caller may have any token at all, before work is done for it.

        Raises:
            OverloadedError: its tokens a minute are used up.
        """

    @abstractmethod
    async def start(self) -> None:
        """Connect to whoever decides."""

    @abstractmethod
    async def stop(self) -> None:
        """End the connection."""

    @abstractmethod
    async def admit(self, ask: Ask) -> Any:
        """Wait for the places of a request; the caller must release what this returns."""

    @abstractmethod
    def release(self, lease: Any, decoded: int | None) -> None:
        """Give back the places of a request that has ended."""

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
        drawn = max(sequences, candidates or 0)
        caller = current_caller.get()
        lease = await self.admit(Ask(caller, sequences, priority, max_tokens, drawn, unit, field))
        # A request that fails or is cancelled reports no decoded tokens, so the largest number is charged.
        entry = Entry()
        try:
            yield entry
        finally:
            self.release(lease, entry.decoded)
