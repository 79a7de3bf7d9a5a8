"""The servers of a remote policy: health, probing, and the choice of a server for each request."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import TypeVar

from vbon.engine.affinity import Load, PrefixAffinity, PromptGroup, least_busy
from vbon.engine.remote.server import RemoteOptions, Replica, ReplicaError, now
from vbon.engine.remote.wire import ModelCard
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
    """All servers of one policy, which must serve the same model with the same context length.

    Attributes:
        model: the model's name; ``None`` until it is known.
        max_model_len: length of the context in tokens; 0 until it is known.
        adapter: True once a server has told that the model is an unmerged LoRA module.
    """

    def __init__(self, urls: Sequence[str], model: str | None, options: RemoteOptions) -> None:
        self.urls = tuple(urls)
        self.model = model
        self.max_model_len = 0
        self.adapter = False
        self._options = options
        self._all: list[Replica] = []
        self._affinity = PrefixAffinity() if options.placement == "prefix" else None

    @property
    def in_flight(self) -> int:
        """The number of requests sent or waiting to be sent, over all servers."""
        return sum(replica.in_flight for replica in self._all)

    @property
    def alive(self) -> bool:
        """True if at least one server takes requests."""
        return any(not replica.trouble for replica in self._all)

    @property
    def trouble(self) -> str:
        """The servers that are left out, with the reasons; empty if all take requests."""
        if not self._all:
            return "not started"
        return "; ".join(
            f"{replica.url} is left out ({replica.trouble})"
            for replica in self._all
            if replica.trouble
        )

    @property
    def all(self) -> Sequence[Replica]:
        """All servers; empty before :meth:`start` and after :meth:`stop`."""
        return self._all

    async def start(self) -> None:
        """Wait until one server takes requests; the others are probed in the background.

        Raises:
            CheckpointError: a server serves another model, or none answered in time.
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
        """Check that the engine has been started and not stopped.

        Raises:
            NotReadyError: it has not been started, or was stopped.
        """
        if not self._all:
            raise NotReadyError(f"the engine of {', '.join(self.urls)} has not started")

    def group(self, prompt_token_ids: Sequence[int]) -> PromptGroup | None:
        """The sequences of one prompt, which go to the same server; ``None`` where each goes by itself."""
        return None if self._affinity is None else self._affinity.group(prompt_token_ids)

    async def call(
        self, work: Callable[[Replica], Awaitable[T]], group: PromptGroup | None = None
    ) -> T:
        """Run ``work`` at one server, and retry once at another if that is safe.

        Args:
            group: chooses the server; without one, the least busy server is chosen.

        Raises:
            NotReadyError: the engine has not been started.
            EngineDeadError: no server takes requests.
            OverloadedError: the servers that take requests are overloaded.
            EngineError: ``work`` failed; the message names each server and its failure.
        """
        self.check_started()
        failed: dict[Replica, ReplicaError] = {}
        while (replica := self._choose(failed, group)) is not None:
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

    def _choose(
        self, tried: dict[Replica, ReplicaError], group: PromptGroup | None
    ) -> Replica | None:
        ready = {r.url: r for r in self._all if not r.trouble and r not in tried}
        capacity = self._options.max_num_seqs
        loads = [Load(r.url, r.in_flight, capacity, r.served) for r in ready.values()]
        name = least_busy(loads) if group is None else group.choose(loads)
        return None if name is None else ready[name]

    def _note(self, replica: Replica, error: ReplicaError) -> None:
        # A server that quickly sends unusable answers is always the least busy, and would get all requests.
        others = any(not r.trouble for r in self._all if r is not replica)
        if error.kind == "down" or (error.kind == "wrong" and others):
            self._leave_out(replica, error.log_text.removeprefix(replica.url).strip(": "))

    def _leave_out(self, replica: Replica, why: str) -> None:
        if replica.recovery is not None or replica not in self._all:
            return
        logger.warning("sending no requests to %s for now: %s", replica.url, why)
        replica.trouble = why
        replica.failures += 1
        if self._affinity is not None:
            self._affinity.forget(replica.url)
        # A context of its own, because the task outlives the request that found the failure and its log
        # records must not carry that request's id.
        replica.recovery = asyncio.create_task(self._recover(replica), context=Context())

    async def _recover(self, replica: Replica) -> None:
        while replica.trouble:
            # The jitter spreads the probes of services that saw the same failure.
            longest = self._options.backoff_s * 2 ** min(replica.failures - 1, 30)
            pause = min(longest, self._options.max_backoff_s)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            if await self._admit(replica) is not None:
                replica.failures += 1
        logger.info("%s takes requests again", replica.url)
        replica.recovery = None

    async def _admit(self, replica: Replica) -> ReplicaError | None:
        """Let a server take requests if it is healthy and serves the policy; otherwise return the error."""
        try:
            self._check_model(replica, await replica.models())
        except ReplicaError as error:
            replica.trouble = error.log_text.removeprefix(replica.url).strip(": ")
            return error
        replica.trouble = ""
        return None

    def _check_model(self, replica: Replica, models: dict[str, ModelCard]) -> None:
        names = ", ".join(models) or "none"
        model = self.model
        if model is None and len(models) == 1:
            model = next(iter(models))
        if model is None or model not in models:
            asked = f"not {model!r}" if model else "choose one of them: URL#name"
            raise ReplicaError(f"{replica.url} serves {names}; {asked}", "wrong", again=True)
        told, wanted = models[model].max_model_len, self._options.max_model_len
        limits = [limit for limit in (told, wanted) if limit]
        if not limits:
            raise ReplicaError(
                f"{replica.url} does not report the context length of {model!r}; set engine.max_model_len",
                "wrong",
                again=True,
            )
        if self.max_model_len not in (0, min(limits)):
            raise ReplicaError(
                f"{replica.url} has a context of {min(limits)} tokens, but the other servers have "
                f"{self.max_model_len}",
                "wrong",
                again=True,
            )
        self.model, self.max_model_len = model, min(limits)
        self.adapter = self.adapter or models[model].adapter
        replica.owner = models[model].owner


def _failures(failed: dict[Replica, ReplicaError]) -> int:
    return sum(error.retry_after_s is None for error in failed.values())


def _summary(failed: dict[Replica, ReplicaError]) -> EngineError | OverloadedError:
    errors = list(failed.values())
    message = "; ".join(str(error) for error in errors)
    busy = [error.retry_after_s for error in errors if error.retry_after_s is not None]
    if busy and errors[-1].again:
        return OverloadedError(message, retry_after_s=min(busy))
    summary = EngineError(message)
    summary.log_text = "; ".join(error.log_text for error in errors)
    return summary
