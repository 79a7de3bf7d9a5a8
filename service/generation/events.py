"""An answer while it is being made, as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from service.generation.plan import Plan
from service.runtime.prompt import PromptResult
from service.strategies import Observer, ScoredCandidate
from vbon.engine import Candidate, Partial

KEEP_ALIVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing has happened for a while; the connection should show that it lives."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request has its place, in front of everything else."""

    prompt_tokens: int


Event = Admitted | Partial | Candidate | ScoredCandidate | Quiet | PromptResult


class _Mailbox(Observer):
    """Holds what has not been read yet.

    Of a growing sample only the latest is kept, so a slow reader gets fewer and longer steps and
    costs no memory.
    """

    follows_tokens: ClassVar[bool] = True

    def __init__(self) -> None:
        self.opened = False
        self._events: list[Admitted | Partial | Candidate | ScoredCandidate] = []
        self._arrived = asyncio.Event()

    def admitted(self, prompt_tokens: int) -> None:
        self.opened = True
        self._put(Admitted(prompt_tokens))

    def grown(self, partial: Partial) -> None:
        if self._events and isinstance(self._events[-1], Partial):
            self._events.pop()
        self._put(partial)

    def finished(self, candidate: Candidate) -> None:
        self._put(candidate)

    def scored(self, candidate: ScoredCandidate) -> None:
        self._put(candidate)

    def wake(self) -> None:
        """Let the reader look up."""
        self._arrived.set()

    def take(self) -> list[Admitted | Partial | Candidate | ScoredCandidate]:
        """All that is there."""
        self._arrived.clear()
        events, self._events = self._events, []
        return events

    async def wait(self, limit_s: float | None) -> None:
        """Until something arrives, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._arrived.wait()

    def _put(self, event: Admitted | Partial | Candidate | ScoredCandidate) -> None:
        self._events.append(event)
        self._arrived.set()


async def events_of(plan: Plan) -> AsyncGenerator[Event, None]:
    """Everything that happens while the one prompt of a plan is answered, the answer last.

    Closing it aborts the work. Quiet moments are told from admission on: a request that waits for
    its place may still be refused with a status of its own.

    Raises:
        VbonError: whatever :meth:`Runtime.answer` raises.
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
    """How far a request has come; ``total`` is the most candidates it may draw."""

    total: int
    finished: int = 0
    scored: int = 0
    best_reward: float | None = None
    best_index: int | None = None

    def update(self, event: Event) -> bool:
        """Take an event into account; whether it changed anything."""
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
