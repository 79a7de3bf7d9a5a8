"""Concurrent execution of several coroutines, and the ends of processes in words."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def all_or_first_error(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently and return their results in order.

    At the first failure, or when the caller is cancelled, the others are cancelled and the failure is
    raised itself. A ``TaskGroup`` would wrap it in an exception group, which error handlers that select by
    type would miss.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def forget_failure(work: asyncio.Future[Any]) -> None:
    """Mark a failure as seen, for work that goes on when whoever asked for it is gone."""
    if not work.cancelled():
        work.exception()


def ended_process(exit_code: int | None) -> str:
    """The end of a process in words, from its exit code in ``multiprocessing``; ``None`` if it runs."""
    if exit_code is None:
        return "its process closed the connection"
    if exit_code >= 0:
        return f"its process ended with exit status {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"{-exit_code}"
    told = f"its process was ended by signal {name}"
    if -exit_code == signal.SIGKILL:
        told += " (the system sends it when memory runs out; see its log)"
    return told
