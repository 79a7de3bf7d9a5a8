"""Blocking work in threads, so that one kind of it never waits for another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_own_thread(name: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a new thread and return its result.

    The work never waits for a free thread, as it may with ``asyncio.to_thread``, and a thread that hangs
    does not keep the program from ending.

    Args:
        name: the name of the thread.
    """
    done: Future[T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            result = context.run(work, *args, **kwargs)
        except BaseException as error:  # whatever it is, it is the caller's
            _unless_cancelled(done, done.set_exception, error)
        else:
            _unless_cancelled(done, done.set_result, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(done)


def _unless_cancelled(done: Future[T], settle: Callable[[Any], None], outcome: Any) -> None:
    # Nobody waits: the caller was cancelled, or the loop is closed.
    with suppress(InvalidStateError, RuntimeError):
        settle(outcome)


class Threads:
    """A few threads for one kind of blocking work, so that it never waits for work of another kind.

    Args:
        name: the kind of work, which begins the names of the threads.
        most: the number of threads at most.
    """

    def __init__(self, name: str, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=name)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work in one of the threads and return its result."""
        call = partial(copy_context().run, work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Let the threads end after their present work. Work that has not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
