"""The scorer of a reward model whose replicas run in a Ray cluster."""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import Context
from functools import partial
from typing import Any
from uuid import uuid4

from ray.serve.handle import DeploymentHandle

from service.fleet.calls import Failure, Trace, called, reward_failures, unwrapped
from service.fleet.registry import running_replicas
from vbon.errors import CheckpointError, RewardDeadError, RewardError
from vbon.prompts import Prompt
from vbon.trace_context import trace_headers

ATTEMPTS = 2
_POLL_S = 0.05
# Texts of one call, as many as a replica scores at once.
_MOST_AT_ONCE = 256

# Calls in flight for each replica: one that is being scored, and the one after it. A call takes 2 ms of a
# core, so that one for each completion would cost more than the rest of a request.
_CALLS_PER_REPLICA = 2

_Waiting = tuple[Prompt, str, "asyncio.Future[float | None]", Trace]


class RayScorer:
    """Scores completions at the replicas of a reward model, a deployment of Ray Serve.

    Completions that arrive while :data:`_CALLS_PER_REPLICA` calls are in flight form the next one. The
    replica makes its batches of the calls of all front ends; texts whose replica, or the reward model in it,
    has died are sent once more, to another one.
    """

    def __init__(
        self, handle: DeploymentHandle[Any], name: str, start_timeout_s: float = 600.0
    ) -> None:
        self.name, self.revision = name, "unknown"
        self._handle, self._start_timeout_s = handle, start_timeout_s
        self._started = False
        self._new: list[_Waiting] = []
        self._calls: set[asyncio.Task[None]] = set()
        self.waiting = 0

    @property
    def alive(self) -> bool:
        """True if at least one replica takes requests."""
        return self._started and self._replicas > 0

    @property
    def _replicas(self) -> int:
        return running_replicas(self._handle.app_name, self._handle.deployment_name)

    async def start(self) -> None:
        """Wait for the first replica and ask it for its model.

        Raises:
            CheckpointError: no replica was ready in time.
        """
        try:
            async with asyncio.timeout(self._start_timeout_s):
                with reward_failures(self._owner):
                    self.name, self.revision = await unwrapped(called(self._handle.describe))
                while not self._replicas:  # noqa: ASYNC110  (Serve's router has no event for it)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise CheckpointError(
                f"no replica of {self._owner} was ready within {self._start_timeout_s:g} s; `serve status` "
                "tells why"
            ) from error
        self._started = True

    async def check(self) -> None:
        """Do nothing: Serve checks the replicas and replaces those that are dead."""

    async def stop(self) -> None:
        """Fail the completions that wait; the replicas are Serve's."""
        self._started = False
        waiting, self._new = self._new, []
        _fail(waiting, RewardError("the service is shutting down"))
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def warm_up(self) -> None:
        """Score one text; errors are ignored, since the replicas have warmed up already."""
        with contextlib.suppress(RewardError):
            await self.score(Prompt(text="warm"), " up")

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        """The raw reward, or ``None`` if the model cannot score this text.

        Raises:
            RewardDeadError: no replica runs, or those that were asked died.
            RewardError: scoring failed.
        """
        if not self.alive:
            raise RewardDeadError(f"no replica of {self._owner} runs; Serve starts new ones")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[float | None] = loop.create_future()
        if not self._new:
            loop.call_soon(self._send, context=Context())
        self._new.append((prompt, completion, future, trace_headers.get()))
        self.waiting += 1
        try:
            return await future
        finally:
            self.waiting -= 1

    def _send(self) -> None:
        """Send the completions whose requests have not been cancelled, as far as calls may be made."""
        while self._new and len(self._calls) < _CALLS_PER_REPLICA * max(1, self._replicas):
            waiting = [one for one in self._new if not one[2].done()]
            batch, self._new = waiting[:_MOST_AT_ONCE], waiting[_MOST_AT_ONCE:]
            if batch:
                call = asyncio.create_task(self._call(batch), context=Context())
                self._calls.add(call)
                call.add_done_callback(partial(self._ended, batch))

    def _ended(self, batch: list[_Waiting], call: asyncio.Task[None]) -> None:
        # A call that is cancelled before its first step does not fail its texts itself.
        _fail(batch, RewardError("the service is shutting down"))
        self._calls.discard(call)
        self._send()

    async def _call(self, batch: list[_Waiting]) -> None:
        try:
            scores = await self._scores(batch)
        except Exception as error:  # whatever it is, its requests must not wait for ever
            known = isinstance(error, RewardError)
            failed = error if known else RewardError(f"scoring failed: {type(error).__name__}")
            _fail(batch, failed)
            return
        for (_, _, future, _), score in zip(batch, scores, strict=True):
            if future.done():
                continue
            if isinstance(score, Failure):
                future.set_exception(score.error)
            else:
                future.set_result(score)

    async def _scores(self, batch: list[_Waiting]) -> list[float | Failure | None]:
        texts = [(prompt, completion) for prompt, completion, _, _ in batch]
        traces = {id(trace): trace for _, _, _, trace in batch}
        trace = dict(next(iter(traces.values()))) if len(traces) == 1 else {}
        call = uuid4().hex
        scores: list[float | Failure | None] = [None] * len(texts)
        left = list(range(len(texts)))
        for _ in range(ATTEMPTS):
            found: list[float | Failure | None]
            try:
                with reward_failures(self._owner):
                    found = await unwrapped(
                        called(
                            self._handle.score,
                            [texts[place] for place in left],
                            trace,
                            sequences=len(left),
                            retry_of=call,
                        )
                    )
            except RewardDeadError as error:
                found = [Failure(error)] * len(left)
            for place, score in zip(left, found, strict=True):
                scores[place] = score
            left = [place for place in left if _has_died(scores[place])]
            if not left or not self.alive:
                break
        return scores

    @property
    def _owner(self) -> str:
        return f"the reward model {self.name}"


def _has_died(score: float | Failure | None) -> bool:
    return isinstance(score, Failure) and isinstance(score.error, RewardDeadError)


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for _, _, future, _ in batch:
        if not future.done():
            future.set_exception(error)
