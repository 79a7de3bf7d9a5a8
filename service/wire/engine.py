"""The engine of a policy whose replicas run in other processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, ClassVar

from prometheus_client import Metric

from service.wire.errors import ConnectionLostError, LeavingError, WireError
from service.wire.hosted import EngineState, Growth
from service.wire.replicas import Replica, Replicas, ReplicasInUse
from vbon.engine.continuation import BrokenOffError, continued
from vbon.engine.drawn_by import note_weights
from vbon.engine.protocol import (
    Candidate,
    FoundCalls,
    ModelInfo,
    Partial,
    Sampling,
    check_fits,
)
from vbon.errors import (
    CandidateCountError,
    EngineDeadError,
    EngineError,
    NotReadyError,
    ReloadRefusedError,
)
from vbon.prompts import Prompt
from vbon.storage.weights_alone import NewWeights

# Replicas at which a call is tried, if the first one dies before its result has been seen.
ATTEMPTS = 2
_METRICS_TIMEOUT_S = 1.0

EngineStates = dict[str, EngineState]


class WireEngine:
    """An :class:`~vbon.engine.protocol.Engine` for a policy whose replicas are reached over the wire.

    The candidates of a request are one call to one replica (:mod:`service.wire.replicas`). If that dies, the
    candidates that are missing are drawn once more at another one: with a seed they are the same ones. A
    streamed sample goes on at another one (:mod:`vbon.engine.continuation`). Candidates of one call, and the
    parts of a streamed sample, are always of the same revision. Who started the replicas also replaces those
    that are dead.

    Args:
        replicas: the connections, which engines of the same process may share: each replica serves the
            engines of all policies of its group.
        policy: the policy's name at the replicas.
        path: its path, as long as no replica has told it.
        start_timeout_s: seconds in which :meth:`start` waits for the first replica.
        remedy: the end of the error if there was none.
        continuations: how often a streamed sample may go on at another replica after one has died.
    """

    recovers: ClassVar[bool] = True

    def __init__(
        self,
        replicas: Replicas[EngineStates],
        policy: str,
        path: str,
        start_timeout_s: float = 600.0,
        remedy: str = "see the log of its process",
        *,
        continuations: int = 1,
    ) -> None:
        self.info = ModelInfo(path, "unknown", 0)
        self._finds_calls = False
        self._replicas, self._policy = replicas, policy
        self._use = ReplicasInUse(replicas, self._learn, start_timeout_s, remedy)
        self._started = False
        self._unfinished = 0
        self._continuations = continuations

    async def start(self) -> None:
        """Wait until a replica serves the policy.

        Raises:
            CheckpointError: no replica was ready in time.
        """
        await self._use.start(self._owner, lambda: self._ready)
        self._started = True

    async def stop(self) -> None:
        """Take no more requests; the replicas belong to who started them."""
        self._started = False
        await self._use.stop()

    async def check(self) -> None:
        """Do nothing: who started the replicas checks them and replaces those that are dead."""

    async def check_weights(self, path: str) -> NewWeights:
        """Refuse: each replica would have to change at the same moment."""
        raise ReloadRefusedError(
            f"{self._owner} runs in other processes, whose weights are not changed in place; deploy it again "
            "with the new path, which replaces one replica after another"
        )

    async def change_weights(self, new: NewWeights, *, keep_requests: bool = False) -> None:
        """Refuse, as :meth:`check_weights`."""
        await self.check_weights(new.checkpoint.path)

    @property
    def alive(self) -> bool:
        """True if at least one replica takes requests."""
        return self._started and bool(self._ready)

    @property
    def trouble(self) -> str:
        """A text if no replica takes requests."""
        if not self._started:
            return "not started, or stopped"
        if self._ready:
            return ""
        states = [state[self._policy] for state in self._states]
        told = next((state.trouble for state in states if state.trouble), "")
        return told or "no replica runs; new ones are being started"

    @property
    def unfinished(self) -> int:
        """The number of sequences that this front end waits for."""
        return self._unfinished

    async def metrics(self) -> list[Metric]:
        """The metrics of one replica's engine; empty if it does not answer in time."""
        replica = self._replicas.choose(self._serves)
        if replica is None:
            return []
        try:
            async with asyncio.timeout(_METRICS_TIMEOUT_S):
                found = await replica.client.call("metrics", self._policy)
        except (TimeoutError, WireError):
            return []
        return [parts.metric for parts in found]

    def is_quick(self, prompt: Prompt) -> bool:
        """True: replicas encode prompts, in processes of their own where those are long."""
        return True

    async def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, from a replica."""
        ids: list[int] = await self._ask("encode", prompt)
        return ids

    @property
    def finds_calls(self) -> bool:
        """True if the replicas have a parser of tool calls."""
        return self._finds_calls

    async def find_calls(
        self, candidate: Candidate, tools: Sequence[Mapping[str, Any]]
    ) -> FoundCalls | None:
        """The calls of tools that a candidate contains, found by a replica."""
        if not self.finds_calls:
            return None
        found: FoundCalls | None = await self._ask("find_calls", candidate, list(tools))
        return found

    async def decode(self, prompt_token_ids: list[int], token_ids: list[int]) -> str:
        """The text of generated token ids, from a replica."""
        text: str = await self._ask("decode", prompt_token_ids, token_ids)
        return text

    async def generate(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        num_samples: int,
        request_id: str,
        first_index: int = 0,
    ) -> AsyncGenerator[Candidate, None]:
        """Yield candidates as they finish; closing the generator aborts the rest at the replica."""
        self._check(prompt_token_ids, sampling)
        missing = set(range(first_index, first_index + num_samples))
        self._unfinished += num_samples
        attempts = _Attempts(self)
        try:
            while missing:
                replica = attempts.next(len(missing), prompt_token_ids)
                try:
                    with self._failures(), replica.load(len(missing)):
                        async with aclosing(
                            replica.client.stream(
                                "generate",
                                self._policy,
                                prompt_token_ids,
                                sampling,
                                sorted(missing),
                                request_id,
                            )
                        ) as candidates:
                            async for candidate in candidates:
                                attempts.keep_revision(replica)
                                missing.discard(candidate.index)
                                self._unfinished -= 1
                                yield candidate
                except (EngineDeadError, LeavingError) as error:
                    if missing:  # otherwise it died after its last candidate
                        attempts.failed(replica, error)
                    continue
                if missing:
                    received = num_samples - len(missing)
                    raise CandidateCountError(expected=num_samples, received=received)
        finally:
            self._unfinished -= len(missing)

    async def stream(
        self, prompt_token_ids: list[int], sampling: Sampling, index: int, request_id: str
    ) -> AsyncGenerator[Partial, None]:
        """Yield a sample while it grows; steps that a slow reader missed are merged into one."""
        self._check(prompt_token_ids, sampling)
        attempts = _Attempts(self, 1 + max(1, self._continuations))

        def draw(token_ids: list[int], part: Sampling) -> AsyncGenerator[Partial, None]:
            return self._drawn(token_ids, part, index, request_id, attempts)

        async def decode(before: list[int], token_ids: list[int]) -> str:
            own = _Attempts(self, revision=attempts.revision)
            text: str = await self._call(own, "decode", before, token_ids)
            return text

        self._unfinished += 1
        partial = None
        try:
            async with aclosing(
                continued(draw, decode, prompt_token_ids, sampling, index)
            ) as partials:
                async for partial in partials:
                    yield partial
            if partial is None or partial.finish_reason is None:
                raise EngineError(f"{self._owner} ended a sample without finishing it")
        finally:
            self._unfinished -= 1

    async def _drawn(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        index: int,
        request_id: str,
        attempts: _Attempts,
    ) -> AsyncGenerator[Partial, None]:
        """The growing sample of one replica, chosen anew as long as no token has come."""
        while True:
            replica = attempts.next(1, prompt_token_ids)
            current = Partial(index, "", (), None, () if sampling.logprobs else None)
            try:
                with self._failures(), replica.load(1):
                    async with aclosing(
                        replica.client.batches(
                            "stream", self._policy, prompt_token_ids, sampling, index, request_id
                        )
                    ) as batches:
                        async for growths in batches:
                            attempts.keep_revision(replica)
                            current = _grown(current, growths)
                            yield current
                return
            except (EngineDeadError, LeavingError) as error:
                if current.finish_reason is not None:
                    return
                attempts.failed(replica, error)
                if current.token_ids and isinstance(error, EngineDeadError):
                    if not self._continuations:
                        raise
                    raise BrokenOffError(error) from error

    async def logprobs(
        self,
        prompt_token_ids: list[int],
        completion_token_ids: list[int],
        request_id: str,
        priority: int = 0,
    ) -> list[float]:
        """Log-probabilities of a completion, from a replica."""
        self._check(prompt_token_ids, Sampling(max_tokens=1, priority=priority))
        found: list[float] = await self._ask(
            "logprobs", prompt_token_ids, completion_token_ids, request_id, priority
        )
        return found

    async def _ask(self, method: str, *args: Any) -> Any:
        """Call a method of a replica's engine; try once more if the replica dies."""
        self._check_started()
        return await self._call(_Attempts(self), method, *args)

    async def _call(self, attempts: _Attempts, method: str, *args: Any) -> Any:
        while True:
            replica = attempts.next()
            try:
                with self._failures():
                    return await replica.client.call(method, self._policy, *args)
            except (EngineDeadError, LeavingError) as error:
                attempts.failed(replica, error)

    @contextmanager
    def _failures(self) -> Any:
        """Translate the failures of a call.

        Raises:
            EngineDeadError: the replica has died.
            LeavingError: the replica has taken no part of the call, because it is about to end.
            EngineError: the call failed otherwise.
        """
        try:
            yield
        except LeavingError:
            raise
        except ConnectionLostError as error:
            raise EngineDeadError(
                f"the replica of {self._owner} that did this has died: {error}"
            ) from error
        except WireError as error:
            raise EngineError(f"{self._owner} failed: {error}") from error

    @property
    def _owner(self) -> str:
        return f"policy {self._policy!r}"

    @property
    def _ready(self) -> list[Replica[EngineStates]]:
        return self._replicas.ready(self._serves)

    @property
    def _states(self) -> list[EngineStates]:
        return [one.state for one in self._replicas.ready(self._has) if one.state is not None]

    def _has(self, states: EngineStates) -> bool:
        return self._policy in states

    def _serves(self, states: EngineStates) -> bool:
        state = states.get(self._policy)
        return state is not None and state.alive

    def _learn(self) -> None:
        """Take over what a replica tells of its engine."""
        for states in self._states:
            state = states[self._policy]
            if state.alive:
                self.info, self._finds_calls = state.info, state.finds_calls
                return

    def _check(self, token_ids: list[int], sampling: Sampling) -> None:
        self._check_started()
        check_fits(self.info, token_ids, sampling)

    def _check_started(self) -> None:
        if not self._started:
            raise NotReadyError(f"the engine of {self._owner} has not started")


class _Attempts:
    """The replicas at which one call has been tried.

    Args:
        deaths: the number of replicas that may die of it before it fails.
        revision: of the replicas; ``None`` for any.

    Attributes:
        revision: of the replicas from which some of the result has come.
    """

    def __init__(
        self, engine: WireEngine, deaths: int = ATTEMPTS, revision: str | None = None
    ) -> None:
        self._engine = engine
        self._tried: set[str] = set()
        self._died: set[str] = set()
        self._deaths_left = deaths
        self.revision = revision
        self._drawing: ModelInfo | None = None
        self._noted = False

    def next(self, sequences: int = 1, token_ids: list[int] | None = None) -> Replica[EngineStates]:
        """The replica for the next attempt.

        Raises:
            EngineDeadError: no replica takes calls, or none with the revision that the call must have.
        """
        found = self._engine._replicas.choose(
            self._fits, sequences=sequences, token_ids=token_ids, tried=self._tried
        )
        if found is None:
            why = self._engine.trouble or f"no other replica serves its revision {self.revision}"
            raise EngineDeadError(f"{self._engine._owner}: {why}")
        self._drawing, self._noted = self._info_at(found), False
        return found

    def keep_revision(self, replica: Replica[EngineStates]) -> None:
        """Let all further attempts be at replicas of the same revision, since some of the result has come.

        Weights that have changed in place meanwhile are noted after those with which the call began.
        """
        self._note()
        now, before = self._info_at(replica), self._drawing
        if now is not None and before is not None and before.revision in now.replaced:
            self._drawing, self._noted = now, False
            self._note()

    def _note(self) -> None:
        if self._drawing is not None and not self._noted:
            self._noted = True
            self.revision = self._drawing.revision
            note_weights(self._engine, self._drawing)

    def failed(self, replica: Replica[EngineStates], error: EngineError | WireError) -> None:
        """Note a replica that has died, or takes no calls.

        Raises:
            EngineDeadError: too many have died, or there are no others.
        """
        self._tried.add(replica.name)
        if isinstance(error, LeavingError):
            return
        if not replica.client.leaving:  # one that was told to end has not died of this call
            self._deaths_left -= 1
            self._died.add(replica.name)
        if len(self._died) >= ATTEMPTS and isinstance(error, EngineDeadError):
            error.again = False
        if self._deaths_left == 0 or not self._engine._ready:
            raise error

    def _fits(self, states: EngineStates) -> bool:
        if not self._engine._serves(states):
            return False
        return self.revision in (None, self._info_of(states).revision)

    def _info_at(self, replica: Replica[EngineStates]) -> ModelInfo | None:
        states = replica.state
        return None if states is None or not self._engine._has(states) else self._info_of(states)

    def _info_of(self, states: EngineStates) -> ModelInfo:
        return states[self._engine._policy].info


def _grown(before: Partial, growths: Sequence[Growth]) -> Partial:
    token_ids, logprobs = list(before.token_ids), list(before.token_logprobs or ())
    for growth in growths:
        token_ids += growth.token_ids
        logprobs += growth.token_logprobs or ()
    return Partial(
        before.index,
        before.text + "".join(growth.text for growth in growths),
        tuple(token_ids),
        growths[-1].finish_reason,
        None if before.token_logprobs is None else tuple(logprobs),
    )
