"""The event loop of the simulation, whose clock jumps to the next timer as soon as nothing else can run."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Counts the time that it should wait instead of waiting; the simulation has no sockets."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError(
                "the simulation waits for something that never happens; this is a fault of the simulation"
            )
        self.now_s += max(0.0, timeout)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; its timers go by the virtual clock, and nothing takes time but them."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(work)
