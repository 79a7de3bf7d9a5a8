"""What engines share that draw each candidate by a request of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any

from vbon.engine.protocol import Candidate
from vbon.errors import CandidateCountError


async def as_they_finish(
    draws: Iterable[Coroutine[Any, Any, Candidate]],
) -> AsyncGenerator[Candidate, None]:
    """Run all at once and yield each candidate as it finishes; closing cancels the rest.

    Raises:
        CandidateCountError: fewer came than were drawn; whatever a draw raises, at the first.
    """
    waiting = list(draws)
    if len(waiting) == 1:  # nothing to run beside it: no task needed
        yield await waiting[0]
        return
    tasks = [asyncio.create_task(draw) for draw in waiting]
    received = 0
    try:
        for finished in asyncio.as_completed(tasks):
            yield await finished
            received += 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if received != len(tasks):
        raise CandidateCountError(expected=len(tasks), received=received)
