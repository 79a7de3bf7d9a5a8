"""An event loop whose clock jumps to the next timer as soon as nothing else can run."""

from __future__ import annotations

import asyncio
import functools
import selectors
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# The kernel of a busy machine may deliver a loopback packet after `send` has returned: wait this long
# for one before the clock jumps.
DELIVERY_S = 2e-4
# Time that a turn of the loop takes, or a loop that only ends by the clock would never end.
TURN_S = 2e-5


class _VirtualSelector(selectors.SelectSelector):
    """Waits only for sockets that are about to be ready, and counts the time it was asked to wait."""

    def __init__(self, delivery_s: float, turn_s: float) -> None:
        super().__init__()
        self.now_s = 0.0
        self._delivery_s, self._turn_s = delivery_s, turn_s

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now_s += self._turn_s
        if timeout is None:  # nothing is scheduled: only a socket or a thread can go on
            return super().select(None)
        ready = super().select(min(max(0.0, timeout), self._delivery_s))
        if not ready:
            self.now_s += max(0.0, timeout)
        return ready


@contextmanager
def _perf_counter(now: Callable[[], float], packages: tuple[str, ...]) -> Iterator[None]:
    """Replace the `perf_counter` that modules of these packages have imported."""
    replaced = []
    for name, module in list(sys.modules.items()):
        if name.startswith(packages) and hasattr(module, "perf_counter"):
            replaced.append((module, module.perf_counter))
            module.perf_counter = now  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, original in replaced:
            module.perf_counter = original  # type: ignore[attr-defined]


def run_virtually(work: Coroutine[Any, Any, T], *packages: str) -> T:
    """Run a coroutine to its end under a virtual clock.

    `loop.time()`, `asyncio.sleep` and time limits go by that clock, and so does the `perf_counter` of
    modules whose names start with one of ``packages``. Where packages are named, sockets of this process
    work as usual and each turn of the loop takes `TURN_S`.
    """
    selector = _VirtualSelector(DELIVERY_S, TURN_S) if packages else _VirtualSelector(0.0, 0.0)
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner, _perf_counter(loop.time, packages):
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
