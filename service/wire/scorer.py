"""The scorer of a reward model whose replicas run in other processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass
from functools import partial

from service.context.scored_by import kept_revisions
from service.wire.errors import (
    ConnectionLostError,
    ErrorParts,
    LeavingError,
    WireError,
    error_parts,
    rebuilt_error,
)
from service.wire.hosted import ScorerState, Scores
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

# A reward, and the revision of the model that gave it.
_Scored = tuple[float | None, str]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A text that waits for its reward.

    Attributes:
        revision: of the model that must score it; ``None`` for any.
        trace: the headers of the trace that its request belongs to.
    """

    prompt: Prompt
    text: str
    revision: str | None
    future: asyncio.Future[_Scored]
    trace: Mapping[str, str]


class WireScorer:
    """Scores completions at the replicas of a reward model, which are reached over the wire.

    Completions that arrive while :data:`_CALLS_PER_REPLICA` calls are in flight form the next one. The
    replica makes its batches of the calls of all its clients; texts whose replica, or the reward model in it,
    has died are sent once more, to another one. The texts of one request are all scored by the same revision
    (:mod:`service.context.scored_by`).

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
            RewardDeadError: no replica runs, those that were asked died, or none has the model any more that
                scored other texts of the request.
            RewardError: scoring failed.
        """
        kept = kept_revisions()
        while True:
            reward, revision = await self._scored(prompt, completion, kept.get(id(self)))
            # Other texts of the request may have been scored meanwhile, by another one.
            if kept.setdefault(id(self), revision) == revision:
                return reward

    async def _scored(self, prompt: Prompt, completion: str, revision: str | None) -> _Scored:
        if not self.alive:
            raise RewardDeadError(f"no replica of {self._owner} runs; new ones are being started")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Scored] = loop.create_future()
        if not self._new:
            loop.call_soon(self._send, context=Context())
        self._new.append(_Waiting(prompt, completion, revision, future, trace_headers.get()))
        self.waiting += 1
        try:
            return await future
        finally:
            self.waiting -= 1

    def _send(self) -> None:
        """Send the completions whose requests have not been cancelled, as far as calls may be made."""
        replicas = len(self._replicas.ready(_is_alive))
        while self._new and len(self._calls) < _CALLS_PER_REPLICA * max(1, replicas):
            waiting = [one for one in self._new if not one.future.done()]
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
        for one, (score, revision) in zip(batch, scores, strict=True):
            if one.future.done():
                continue
            if isinstance(score, ErrorParts):
                one.future.set_exception(rebuilt_error(score))
            else:
                one.future.set_result((score, revision))

    async def _scores(self, batch: list[_Waiting]) -> list[tuple[float | ErrorParts | None, str]]:
        traces = {id(one.trace): one.trace for one in batch}
        trace_headers.set(next(iter(traces.values())) if len(traces) == 1 else NO_TRACE)
        scores: list[tuple[float | ErrorParts | None, str]] = [(None, "")] * len(batch)
        left = list(range(len(batch)))
        tried: set[str] = set()
        deaths = 0
        while left:
            usable = self._usable({batch[place].revision for place in left})
            replica = self._replicas.choose(usable, sequences=len(left), tried=tried)
            if replica is None:
                raise RewardDeadError(
                    f"no replica of {self._owner} runs; new ones are being started"
                )
            tried.add(replica.name)
            texts = [(batch[place].prompt, batch[place].text) for place in left]
            revisions = [batch[place].revision for place in left]
            try:
                with replica.load(len(left)):
                    found: Scores = await replica.client.call("score", texts, revisions)
            except LeavingError:
                continue
            except ConnectionLostError as error:
                dead = RewardDeadError(
                    f"the replica of {self._owner} that did this has died: {error}"
                )
                found = Scores([error_parts(dead)] * len(left), [""] * len(left))
            except WireError as error:
                raise RewardError(f"{self._owner} failed: {error}") from error
            if not len(found.rewards) == len(found.revisions) == len(left):
                raise RewardError(
                    f"{self._owner} returned {len(found.rewards)} scores for {len(left)} texts"
                )
            for place, score in zip(
                left, zip(found.rewards, found.revisions, strict=True), strict=True
            ):
                scores[place] = score
            left = [place for place in left if _has_died(scores[place][0])]
            deaths += 1
            if deaths == ATTEMPTS or not self.alive:
                break
        return scores

    def _usable(self, revisions: set[str | None]) -> Callable[[ScorerState], bool]:
        """The condition for a replica: it has a revision that one of the texts must have, if there is one."""

        def fits(state: ScorerState) -> bool:
            return state.alive and state.revision in revisions

        return fits if self._replicas.ready(fits) else _is_alive

    @property
    def _owner(self) -> str:
        return f"the reward model {self.name}"


def _is_alive(state: ScorerState) -> bool:
    return state.alive


def _fitting(waiting: list[_Waiting]) -> int:
    """The number of these that fit into one call."""
    characters = 0
    for count, one in enumerate(waiting[:_MOST_AT_ONCE]):
        characters += one.prompt.size + len(one.text)
        if count and characters > _MOST_CHARACTERS:
            return count
    return min(len(waiting), _MOST_AT_ONCE)


def _has_died(score: float | ErrorParts | None) -> bool:
    return isinstance(score, ErrorParts) and score.kind == RewardDeadError.__name__


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for one in batch:
        if not one.future.done():
            one.future.set_exception(error)
