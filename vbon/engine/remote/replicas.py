"""The servers behind a remote policy: which of them take requests, and who gets the next one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import TypeVar

from vbon.engine.remote.server import RemoteOptions, Replica, ReplicaError, now
from vbon.errors import (
    CheckpointError,
    EngineDeadError,
    EngineError,
    NotReadyError,
    OverloadedError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 2


class Replicas:
    """All servers of one policy. They must serve the same model with the same context.

    Attributes:
        model: its name, once known.
        max_model_len: its context in tokens, once known.
    """

    def __init__(self, urls: Sequence[str], model: str | None, options: RemoteOptions) -> None:
        self.urls = tuple(urls)
        self.model = model
        self.max_model_len = 0
        self._options = options
        self._all: list[Replica] = []

    @property
    def in_flight(self) -> int:
        """Requests sent to any of them, or waiting to be sent."""
        return sum(replica.in_flight for replica in self._all)

    @property
    def alive(self) -> bool:
        """Whether any takes requests."""
        return any(not replica.trouble for replica in self._all)

    @property
    def trouble(self) -> str:
        """Each server that takes no requests and why; empty if all do."""
        if not self._all:
            return "not started"
        return "; ".join(
            f"{replica.url} is left out ({replica.trouble})"
            for replica in self._all
            if replica.trouble
        )

    @property
    def all(self) -> Sequence[Replica]:
        """Every server; empty before the start and after the end."""
        return self._all

    async def start(self) -> None:
        """Wait until one takes requests; those that do not yet are probed from then on.

        Raises:
            CheckpointError: one serves something else, or none answered in time.
        """
        self._all = [Replica(url, self._options) for url in self.urls]
        deadline = now() + self._options.start_timeout_s
        pause = self._options.backoff_s
        while True:
            for error in await asyncio.gather(*(self._admit(replica) for replica in self._all)):
                if error is not None and error.kind == "wrong":
                    raise CheckpointError(str(error))
            if self.alive:
                break
            if now() + pause > deadline:
                raise CheckpointError(
                    f"no server answered within {self._options.start_timeout_s:g} s: {self.trouble}"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)
        for replica in self._all:
            if replica.trouble:
                self._leave_out(replica, replica.trouble)

    async def stop(self) -> None:
        """Close all connections; safe to call twice."""
        replicas, self._all = self._all, []
        for replica in replicas:
            replica.trouble = "stopped"
        await asyncio.gather(*(replica.close() for replica in replicas))

    def check_started(self) -> None:
        """Refuse what comes before the start or after the end.

        Raises:
            NotReadyError: the servers are not known yet.
        """
        if not self._all:
            raise NotReadyError(f"the engine of {', '.join(self.urls)} has not started")

    async def call(self, work: Callable[[Replica], Awaitable[T]]) -> T:
        """Do ``work`` at the server with the least to do, once more at another if it may.

        Raises:
            NotReadyError: not started.
            EngineDeadError: no server takes requests.
            OverloadedError: those that do are busy.
            EngineError: it failed; names the server and what was wrong.
        """
        self.check_started()
        failed: dict[Replica, ReplicaError] = {}
        while (replica := self._least_busy(failed)) is not None:
            try:
                async with replica.slot():
                    result = await work(replica)
            except ReplicaError as error:
                self._note(replica, error)
                failed[replica] = error
                if not error.again or _failures(failed) >= ATTEMPTS:
                    raise _summary(failed) from error
                continue
            replica.served += 1
            if not replica.trouble:
                replica.failures = 0
            return result
        if failed:
            raise _summary(failed)
        raise EngineDeadError(f"no server takes requests: {self.trouble}")

    def _least_busy(self, tried: dict[Replica, ReplicaError]) -> Replica | None:
        ready = [r for r in self._all if not r.trouble and r not in tried]
        return min(ready, key=lambda r: (r.in_flight, r.served), default=None)

    def _note(self, replica: Replica, error: ReplicaError) -> None:
        # A server that answers nonsense fast has always the least to do, and would get everything.
        others = any(not r.trouble for r in self._all if r is not replica)
        if error.kind == "down" or (error.kind == "wrong" and others):
            self._leave_out(replica, str(error).removeprefix(replica.url).strip(": "))

    def _leave_out(self, replica: Replica, why: str) -> None:
        if replica.recovery is not None or replica not in self._all:
            return
        logger.warning("leaving out %s: %s", replica.url, why)
        replica.trouble = why
        replica.failures += 1
        # In a context of its own: it outlives the request that found the failure, and is none of its log.
        replica.recovery = asyncio.create_task(self._recover(replica), context=Context())

    async def _recover(self, replica: Replica) -> None:
        while replica.trouble:
            # Without the jitter, services that saw the same failure would all come back at once.
            longest = self._options.backoff_s * 2 ** min(replica.failures - 1, 30)
            pause = min(longest, self._options.max_backoff_s)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            if await self._admit(replica) is not None:
                replica.failures += 1
        logger.info("%s takes requests again", replica.url)
        replica.recovery = None

    async def _admit(self, replica: Replica) -> ReplicaError | None:
        """Let it take requests if it is well and serves the policy; else why not."""
        try:
            self._check_model(replica, await replica.models())
        except ReplicaError as error:
            replica.trouble = str(error).removeprefix(replica.url).strip(": ")
            return error
        replica.trouble = ""
        return None

    def _check_model(self, replica: Replica, models: dict[str, int | None]) -> None:
        names = ", ".join(models) or "none"
        model = self.model
        if model is None and len(models) == 1:
            model = next(iter(models))
        if model is None or model not in models:
            asked = f"not {model!r}" if model else "name one of them: URL#name"
            raise ReplicaError(f"{replica.url} serves {names}; {asked}", "wrong", again=True)
        told, wanted = models[model], self._options.max_model_len
        limits = [limit for limit in (told, wanted) if limit]
        if not limits:
            raise ReplicaError(
                f"{replica.url} does not tell the context of {model!r}; set engine.max_model_len",
                "wrong",
                again=True,
            )
        if self.max_model_len not in (0, min(limits)):
            raise ReplicaError(
                f"{replica.url} has a context of {min(limits)} tokens where the other servers have "
                f"{self.max_model_len}",
                "wrong",
                again=True,
            )
        self.model, self.max_model_len = model, min(limits)


def _failures(failed: dict[Replica, ReplicaError]) -> int:
    return sum(error.retry_after_s is None for error in failed.values())


def _summary(failed: dict[Replica, ReplicaError]) -> EngineError | OverloadedError:
    errors = list(failed.values())
    message = "; ".join(str(error) for error in errors)
    busy = [error.retry_after_s for error in errors if error.retry_after_s is not None]
    if busy and errors[-1].again:
        return OverloadedError(message, retry_after_s=min(busy))
    return EngineError(message)
