"""The events of one answer while it is being made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from service.generation.plan import Plan
from service.runtime.prompt import PromptResult
from service.strategies import Admitted, Observer, ScoredCandidate
from vbon.engine import Candidate, Partial

KEEP_ALIVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Quiet:
    """No event for :data:`KEEP_ALIVE_S`; the stream sends a comment to keep the connection open."""


ProgressEvent = Admitted | Partial | Candidate | ScoredCandidate
Event = ProgressEvent | Quiet | PromptResult


class _Mailbox(Observer):
    """Buffers events until they are read.

    Only the latest state of each growing sample is kept, so a slow reader gets fewer and longer steps and
    does not take up memory.
    """

    follows_tokens: ClassVar[bool] = True

    def __init__(self) -> None:
        self.opened = False
        self._events: list[ProgressEvent] = []
        self._arrived = asyncio.Event()

    def admitted(self, admitted: Admitted) -> None:
        self.opened = True
        self._put(admitted)

    def grown(self, partial: Partial) -> None:
        self.has_tokens = True
        for position in reversed(range(len(self._events))):
            before = self._events[position]
            if isinstance(before, Partial) and before.index == partial.index:
                del self._events[position]
                break
        self._put(partial)

    def finished(self, candidate: Candidate) -> None:
        self.has_candidates = True
        self._put(candidate)

    def scored(self, candidate: ScoredCandidate) -> None:
        self.has_candidates = True
        self._put(candidate)

    def wake(self) -> None:
        """Make :meth:`wait` return although there is nothing new."""
        self._arrived.set()

    def take(self) -> list[ProgressEvent]:
        """Remove and return all buffered events."""
        self._arrived.clear()
        events, self._events = self._events, []
        return events

    async def wait(self, limit_s: float | None) -> None:
        """Wait until an event arrives, at most ``limit_s``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._arrived.wait()

    def _put(self, event: ProgressEvent) -> None:
        self._events.append(event)
        self._arrived.set()


async def answer_events(plan: Plan) -> AsyncGenerator[Event, None]:
    """Answer the one prompt of a plan and yield every event on the way, the result last.

    Closing the generator aborts the work. :class:`Quiet` is yielded only after admission, because the
    response starts with its first event, and a request that waits for admission may still be rejected
    with a status of its own.

    Raises:
        VbonError: as :meth:`Runtime.answer`.
    """
    mailbox = _Mailbox()
    work = asyncio.create_task(plan.answer_prompt(0, mailbox))
    work.add_done_callback(lambda _: mailbox.wake())
    try:
        done = False
        while not done:
            await mailbox.wait(KEEP_ALIVE_S if mailbox.opened else None)
            done = work.done()
            events = mailbox.take()
            for event in events:
                yield event
            if not events and not done:
                yield Quiet()
        yield work.result()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


@dataclass(slots=True)
class CandidateProgress:
    """Counts of finished and scored candidates, and the best so far.

    Attributes:
        total: the most candidates that the request may draw.
    """

    total: int
    finished: int = 0
    scored: int = 0
    best_reward: float | None = None
    best_index: int | None = None

    def update(self, event: Event) -> bool:
        """Count an event; returns whether it changed a count."""
        if isinstance(event, Admitted):
            self.total = event.most_candidates  # mode auto has chosen it only now
            return False
        if isinstance(event, Candidate):
            self.finished += 1
            return True
        if isinstance(event, ScoredCandidate):
            self.scored += 1
            self._compare(event)
            return True
        return False

    def _compare(self, scored: ScoredCandidate) -> None:
        reward, index = scored.reward, scored.candidate.index
        if reward is None or scored.candidate.finish_reason == "rejected":
            return
        if self.best_reward is None or self.best_index is None:
            better = True
        else:
            better = (reward, -index) > (self.best_reward, -self.best_index)
        if better:
            self.best_reward, self.best_index = reward, index
