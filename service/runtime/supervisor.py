"""Brings back what has died: engines and the workers of reward models, each by itself, with back-off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

logger = logging.getLogger(__name__)

# A process that has lived for so long did not die of how it was started: back-off begins anew.
STEADY_S = 60.0
LATE_S = 2.0


class RestartablePart(Protocol):
    """Something with a process of its own."""

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""

    async def check(self) -> None:
        """End it if it hangs."""

    async def start(self) -> None:
        """Bring it back, ready to be asked.

        Raises:
            Exception: it could not be; it may be tried again.
        """


@dataclass
class Supervision:
    """One part under supervision.

    Attributes:
        name: for logs and readiness.
        restarts: times it was brought back.
        failures: deaths and failed attempts since it last lived for :data:`STEADY_S`.
        recovery_s: how long it was away the last time; 0 if it never died.
        trouble: what is being done about it; empty while it lives.
    """

    name: str
    part: RestartablePart
    restarts: int = 0
    failures: int = 0
    recovery_s: float = 0.0
    trouble: str = ""
    alive_since_s: float = 0.0


class Supervisor:
    """Looks at every part now and then and starts again what is dead.

    Args:
        parts: by name.
        poll_s: between looks.
        backoff_s: before the second attempt in a row; the first is made at once, each further one
            waits twice as long, up to ``max_backoff_s``.
        on_recovered: told of each that came back.
    """

    def __init__(
        self,
        parts: Mapping[str, RestartablePart],
        *,
        poll_s: float = 0.25,
        backoff_s: float = 1.0,
        max_backoff_s: float = 60.0,
        on_recovered: Callable[[Supervision], object] = lambda _: None,
    ) -> None:
        self.supervised = {name: Supervision(name, part) for name, part in parts.items()}
        self._poll_s = poll_s
        self._backoff_s, self._max_backoff_s = backoff_s, max_backoff_s
        self._on_recovered = on_recovered
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin to look; the parts are alive."""
        for watch in self.supervised.values():
            self._begin(watch)

    async def stop(self) -> None:
        """Let everything be."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def replace(self, name: str, part: RestartablePart) -> None:
        """Supervision another part, which is alive, under a name from here on."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        watch = self.supervised[name]
        watch.part, watch.trouble, watch.failures = part, "", 0
        self._begin(watch)

    @property
    def trouble(self) -> str:
        """What is dead, and what is being done about it; empty if all live."""
        return "; ".join(watch.trouble for watch in self.supervised.values() if watch.trouble)

    def _begin(self, watch: Supervision) -> None:
        watch.alive_since_s = monotonic()
        self._tasks[watch.name] = asyncio.create_task(
            self._look(watch), name=f"supervise-{watch.name}", context=Context()
        )

    async def _look(self, watch: Supervision) -> None:
        due_s = monotonic()
        while True:
            due_s = max(due_s, monotonic()) + self._poll_s
            await asyncio.sleep(self._poll_s)
            # Where this loop was held up, what the part said meanwhile was not heard either.
            if monotonic() - due_s < LATE_S:
                await self._check(watch)
            if not watch.part.alive:
                await self._bring_back(watch)

    async def _check(self, watch: Supervision) -> None:
        try:
            await watch.part.check()
        except (
            Exception
        ):  # what cannot be asked whether it hangs can still die, and be brought back
            logger.exception("%s cannot be looked at", watch.name)

    async def _bring_back(self, watch: Supervision) -> None:
        died_s = monotonic()
        if died_s - watch.alive_since_s >= STEADY_S:
            watch.failures = 0
        why = "it has died"
        while True:
            watch.failures += 1
            pause_s = self._pause_s(watch.failures)
            watch.trouble = f"{watch.name}: {why}; it is started again" + (
                f" in {pause_s:g} s" if pause_s else ""
            )
            logger.error("%s", watch.trouble)
            await asyncio.sleep(pause_s)
            try:
                await watch.part.start()
                if watch.part.alive:
                    break
                why = "it died as soon as it was started"
            except Exception as error:  # whatever stops it from starting may be gone the next time
                why = f"it cannot be started: {error}"
        watch.restarts += 1
        watch.recovery_s = monotonic() - died_s
        watch.trouble, watch.alive_since_s = "", monotonic()
        logger.info("%s is back after %.1f s", watch.name, watch.recovery_s)
        self._on_recovered(watch)

    def _pause_s(self, failures: int) -> float:
        if failures == 1:
            return 0.0
        return min(self._max_backoff_s, self._backoff_s * 2.0 ** min(failures - 2, 30))
