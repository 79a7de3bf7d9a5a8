"""An event loop whose clock jumps to the next timer as soon as nothing else can run."""

from __future__ import annotations

import asyncio
import functools
import selectors
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# The kernel of a busy machine may deliver a loopback packet after `send` has returned: wait this long
# for one before the clock jumps, and up to this long before it jumps far, which may end a time limit.
DELIVERY_S, DELIVERY_BEFORE_A_LIMIT_S = 2e-4, 5e-3
LIMIT_S = 1.0  # of that length
# Time that a turn of the loop takes, or a loop that only ends by the clock would never end.
TURN_S = 2e-5


class _VirtualSelector(selectors.SelectSelector):
    """Waits only for threads and for sockets that are about to be ready, and counts what it should wait."""

    def __init__(self, *, sockets: bool) -> None:
        super().__init__()
        self.now_s = 0.0
        self.threads = 0
        self._sockets = sockets

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now_s += TURN_S * self._sockets
        if timeout is None:  # nothing is scheduled: only a socket or a thread can go on
            return super().select(None)
        timeout = max(0.0, timeout)
        if self.threads:  # their time is real
            begun = time.perf_counter()
            ready = super().select(timeout)
            self.now_s += min(timeout, time.perf_counter() - begun) if ready else timeout
            return ready
        ready = super().select(min(timeout, self._patience_s(timeout)))
        if not ready:
            self.now_s += timeout
        return ready

    def _patience_s(self, jump_s: float) -> float:
        if not self._sockets:
            return 0.0
        return DELIVERY_BEFORE_A_LIMIT_S if jump_s >= LIMIT_S else DELIVERY_S


class _VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock stands, or rather goes as any other, while a thread of its executors works."""

    def __init__(self, *, sockets: bool) -> None:
        self._virtual = _VirtualSelector(sockets=sockets)
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def run_in_executor(self, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        def count(_: object) -> None:
            self._virtual.threads -= 1

        self._virtual.threads += 1
        working = super().run_in_executor(*args)
        working.add_done_callback(count)
        return working


@functools.lru_cache(maxsize=64)
def _readers(packages: tuple[str, ...], _: int) -> list[tuple[str, str]]:
    """The names of modules of these packages that have imported a clock, each with the clock's name.

    Args:
        _: the number of imported modules, since an import may add a reader.
    """
    return [
        (name, clock)
        for name, module in list(sys.modules.items())
        if name.startswith(packages)
        for clock in ("perf_counter", "monotonic")
        if hasattr(module, clock)
    ]


@contextmanager
def _replaced_clocks(now: Callable[[], float], packages: tuple[str, ...]) -> Iterator[None]:
    """Replace the `perf_counter` and the `monotonic` that modules of these packages have imported."""
    readers = _readers(packages, len(sys.modules)) if packages else []
    modules = [(sys.modules[name], clock) for name, clock in readers if name in sys.modules]
    replaced = [(module, clock, getattr(module, clock)) for module, clock in modules]
    for module, clock, _ in replaced:
        setattr(module, clock, now)
    try:
        yield
    finally:
        for module, clock, original in replaced:
            setattr(module, clock, original)


def run_virtually(work: Coroutine[Any, Any, T], *packages: str) -> T:
    """Run a coroutine to its end under a virtual clock.

    `loop.time()`, `asyncio.sleep` and time limits go by that clock, and so do the `perf_counter` and the
    `monotonic` of modules whose names start with one of ``packages``. Where packages are named, sockets of
    this process work as usual and each turn of the loop takes `TURN_S`. While a thread of an executor
    works, time is real.
    """
    loop = _VirtualLoop(sockets=bool(packages))
    with asyncio.Runner(loop_factory=lambda: loop) as runner, _replaced_clocks(loop.time, packages):
        return runner.run(work)


def virtually(
    *packages: str,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, T]]:
    """Decorate an asynchronous test so that it runs under a virtual clock (see `run_virtually`)."""

    def decorate(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        @functools.wraps(test)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return run_virtually(test(*args, **kwargs), *packages)

        return run

    return decorate
