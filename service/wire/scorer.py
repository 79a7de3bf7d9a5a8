"""The scorer of a reward model whose replicas run in other processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from contextvars import Context
from functools import partial

from service.wire.errors import (
    ConnectionLostError,
    ErrorParts,
    LeavingError,
    WireError,
    error_parts,
    rebuilt_error,
)
from service.wire.hosted import ScorerState
from service.wire.replicas import Replicas, ReplicasInUse
from vbon.errors import RewardDeadError, RewardError
from vbon.prompts import Prompt
from vbon.trace_context import NO_TRACE, trace_headers

ATTEMPTS = 2
# Texts of one call, as many as a replica scores at once, and their characters, which have 4 bytes at most.
_MOST_AT_ONCE, _MOST_CHARACTERS = 256, 2**23

# Calls in flight for each replica: one that is being scored, and the one after it. Texts that arrive
# meanwhile are the next call, which costs both processes less than a call for each.
_CALLS_PER_REPLICA = 2

_Waiting = tuple[Prompt, str, "asyncio.Future[float | None]", Mapping[str, str]]


class WireScorer:
    """Scores completions at the replicas of a reward model, which are reached over the wire.

    Completions that arrive while :data:`_CALLS_PER_REPLICA` calls are in flight form the next one. The
    replica makes its batches of the calls of all its clients; texts whose replica, or the reward model in it,
    has died are sent once more, to another one.

    Args:
        name: the reward model's name, as long as no replica has told it.
        start_timeout_s: seconds in which :meth:`start` waits for the first replica.
        remedy: the end of the error if there was none.
    """

    def __init__(
        self,
        replicas: Replicas[ScorerState],
        name: str,
        start_timeout_s: float = 600.0,
        remedy: str = "see the log of its process",
    ) -> None:
        self.name, self.revision = name, "unknown"
        self._replicas = replicas
        self._use = ReplicasInUse(replicas, self._learn, start_timeout_s, remedy)
        self._started = False
        self._new: list[_Waiting] = []
        self._calls: set[asyncio.Task[None]] = set()
        self.waiting = 0

    @property
    def alive(self) -> bool:
        """True if at least one replica takes requests."""
        return self._started and bool(self._replicas.ready(_is_alive))

    async def start(self) -> None:
        """Wait until a replica has its model.

        Raises:
            CheckpointError: no replica was ready in time.
        """
        await self._use.start(self._owner, lambda: self._replicas.ready(_is_alive))
        self._started = True

    async def check(self) -> None:
        """Do nothing: who started the replicas checks them and replaces those that are dead."""

    async def stop(self) -> None:
        """Fail the completions that wait; the replicas belong to who started them."""
        self._started = False
        waiting, self._new = self._new, []
        _fail(waiting, RewardError("the service is shutting down"))
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._use.stop()

    def _learn(self) -> None:
        """Take over what a replica tells of its model."""
        for replica in self._replicas.ready(_is_alive):
            if replica.state is not None:
                self.name, self.revision = replica.state.name, replica.state.revision
                return

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
            raise RewardDeadError(f"no replica of {self._owner} runs; new ones are being started")
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
        replicas = len(self._replicas.ready(_is_alive))
        while self._new and len(self._calls) < _CALLS_PER_REPLICA * max(1, replicas):
            waiting = [one for one in self._new if not one[2].done()]
            count = _fitting(waiting)
            batch, self._new = waiting[:count], waiting[count:]
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
            if isinstance(score, ErrorParts):
                future.set_exception(rebuilt_error(score))
            else:
                future.set_result(score)

    async def _scores(self, batch: list[_Waiting]) -> list[float | ErrorParts | None]:
        texts = [(prompt, completion) for prompt, completion, _, _ in batch]
        traces = {id(trace): trace for _, _, _, trace in batch}
        trace_headers.set(next(iter(traces.values())) if len(traces) == 1 else NO_TRACE)
        scores: list[float | ErrorParts | None] = [None] * len(texts)
        left = list(range(len(texts)))
        tried: set[str] = set()
        deaths = 0
        while left:
            replica = self._replicas.choose(_is_alive, sequences=len(left), tried=tried)
            if replica is None:
                raise RewardDeadError(
                    f"no replica of {self._owner} runs; new ones are being started"
                )
            tried.add(replica.name)
            found: list[float | ErrorParts | None]
            try:
                with replica.load(len(left)):
                    found = await replica.client.call("score", [texts[place] for place in left])
            except LeavingError:
                continue
            except ConnectionLostError as error:
                dead = RewardDeadError(
                    f"the replica of {self._owner} that did this has died: {error}"
                )
                found = [error_parts(dead)] * len(left)
            except WireError as error:
                raise RewardError(f"{self._owner} failed: {error}") from error
            if len(found) != len(left):
                raise RewardError(
                    f"{self._owner} returned {len(found)} scores for {len(left)} texts"
                )
            for place, score in zip(left, found, strict=True):
                scores[place] = score
            left = [place for place in left if _has_died(scores[place])]
            deaths += 1
            if deaths == ATTEMPTS or not self.alive:
                break
        return scores

    @property
    def _owner(self) -> str:
        return f"the reward model {self.name}"


def _is_alive(state: ScorerState) -> bool:
    return state.alive


def _fitting(waiting: list[_Waiting]) -> int:
    """The number of these that fit into one call."""
    characters = 0
    for count, (prompt, completion, _, _) in enumerate(waiting[:_MOST_AT_ONCE]):
        characters += prompt.size + len(completion)
        if count and characters > _MOST_CHARACTERS:
            return count
    return min(len(waiting), _MOST_AT_ONCE)


def _has_died(score: float | ErrorParts | None) -> bool:
    return isinstance(score, ErrorParts) and score.kind == RewardDeadError.__name__


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for _, _, future, _ in batch:
        if not future.done():
            future.set_exception(error)
