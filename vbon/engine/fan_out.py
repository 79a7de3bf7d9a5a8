"""Concurrent requests of one candidate each, shared by the engines that work this way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any

from vbon.engine.protocol import Candidate
from vbon.errors import CandidateCountError


async def as_they_finish(
    draws: Iterable[Coroutine[Any, Any, Candidate]],
) -> AsyncGenerator[Candidate, None]:
    """Run all requests concurrently and yield each candidate when it finishes.

    Closing the generator cancels the unfinished requests. The first error of a request is raised as it is.

    Raises:
        CandidateCountError: fewer candidates finished than requests were started.
    """
    waiting = list(draws)
    if len(waiting) == 1:  # a single request needs no task
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
