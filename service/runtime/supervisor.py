"""Supervision: restarts dead engines and reward workers, each separately and with back-off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

logger = logging.getLogger(__name__)

# A process that lived this long did not die because of how it was started, so back-off starts over.
STEADY_S = 60.0
LATE_S = 2.0


class RestartablePart(Protocol):
    """An engine or a scorer with a process of its own."""

    @property
    def alive(self) -> bool:
        """True if the part can take requests."""

    async def check(self) -> None:
        """End the process if it hangs."""

    async def start(self) -> None:
        """Start the part again, ready for requests.

        Raises:
            Exception: the start failed; the supervisor tries again later.
        """


@dataclass
class Supervision:
    """The supervision state of one part.

    Attributes:
        name: used in logs and in the readiness status.
        restarts: number of successful restarts.
        failures: deaths and failed starts since the part last lived for :data:`STEADY_S`.
        recovery_s: seconds from the last death to recovery; 0 if the part never died.
        trouble: why the part is down and when it is restarted; empty while it is alive.
        alive_since_s: :func:`time.monotonic` of the last start.
    """

    name: str
    part: RestartablePart
    restarts: int = 0
    failures: int = 0
    recovery_s: float = 0.0
    trouble: str = ""
    alive_since_s: float = 0.0


class Supervisor:
    """Checks every part periodically and restarts those that are dead.

    Args:
        parts: the parts by name.
        poll_s: time between checks.
        backoff_s: pause before the second attempt in a row. The first attempt is immediate; each
            further pause is twice as long, up to ``max_backoff_s``.
        on_recovered: called with each part that has been restarted.
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
        """Start supervising. All parts must be alive."""
        for supervision in self.supervised.values():
            self._begin(supervision)

    async def stop(self) -> None:
        """Stop supervising. The parts keep running."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def add(self, name: str, part: RestartablePart) -> None:
        """Supervise one more part, which must be alive."""
        self.supervised[name] = Supervision(name, part)
        self._begin(self.supervised[name])

    async def replace(self, name: str, part: RestartablePart) -> None:
        """Supervise another part, which must be alive, under an existing name."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        supervision = self.supervised[name]
        supervision.part, supervision.trouble, supervision.failures = part, "", 0
        self._begin(supervision)

    async def remove(self, name: str) -> None:
        """Supervise a part no longer; it keeps running."""
        self.supervised.pop(name, None)
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @property
    def trouble(self) -> str:
        """The dead parts and when each is restarted; empty if all are alive."""
        return "; ".join(one.trouble for one in self.supervised.values() if one.trouble)

    def _begin(self, supervision: Supervision) -> None:
        supervision.alive_since_s = monotonic()
        self._tasks[supervision.name] = asyncio.create_task(
            self._supervise(supervision), name=f"supervise-{supervision.name}", context=Context()
        )

    async def _supervise(self, supervision: Supervision) -> None:
        due_s = monotonic()
        while True:
            due_s = max(due_s, monotonic()) + self._poll_s
            await asyncio.sleep(self._poll_s)
            # If this event loop was blocked, the part's heartbeats may not have been read either, so a
            # check could take a healthy part for a hanging one.
            if monotonic() - due_s < LATE_S:
                await self._check(supervision)
            if not supervision.part.alive:
                await self._restart(supervision)

    async def _check(self, supervision: Supervision) -> None:
        try:
            await supervision.part.check()
        except Exception:  # a failed check must not end supervision: the part can still die
            logger.exception("the check of %s failed", supervision.name)

    async def _restart(self, supervision: Supervision) -> None:
        died_s = monotonic()
        if died_s - supervision.alive_since_s >= STEADY_S:
            supervision.failures = 0
        why = "it has died"
        while True:
            supervision.failures += 1
            pause_s = self._pause_s(supervision.failures)
            supervision.trouble = f"{supervision.name}: {why}; restarting" + (
                f" in {pause_s:g} s" if pause_s else ""
            )
            logger.error("%s", supervision.trouble)
            await asyncio.sleep(pause_s)
            try:
                await supervision.part.start()
                if supervision.part.alive:
                    break
                why = "it died right after it was started"
            except (
                Exception
            ) as error:  # any cause of a failed start may be gone at the next attempt
                why = f"it could not be started: {error}"
        supervision.restarts += 1
        supervision.recovery_s = monotonic() - died_s
        supervision.trouble, supervision.alive_since_s = "", monotonic()
        logger.info("%s is running again after %.1f s", supervision.name, supervision.recovery_s)
        self._on_recovered(supervision)

    def _pause_s(self, failures: int) -> float:
        if failures == 1:
            return 0.0
        return min(self._max_backoff_s, self._backoff_s * 2.0 ** min(failures - 2, 30))
