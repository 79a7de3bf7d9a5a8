"""The engine of a policy whose replicas run in a Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar
from uuid import uuid4

from prometheus_client import Metric
from ray.serve.handle import DeploymentHandle

from service.fleet.calls import (
    Growth,
    PolicyDescription,
    called,
    engine_failures,
    unwrapped,
    unwrapped_all,
)
from service.fleet.registry import running_replicas
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
    CheckpointError,
    EngineDeadError,
    EngineError,
    NotReadyError,
    ReloadRefusedError,
)
from vbon.prompts import Prompt
from vbon.storage.weights_alone import NewWeights
from vbon.trace_context import trace_headers

# Replicas at which a call is tried, if the first one dies before its result has been seen.
ATTEMPTS = 2
_METRICS_TIMEOUT_S = 1.0
_POLL_S = 0.05


class RayEngine:
    """An :class:`~vbon.engine.protocol.Engine` for a policy whose replicas are a deployment of Ray Serve.

    The candidates of a request are one call to one replica, which the router of this process chooses (see
    :mod:`service.fleet.router`). If that replica dies, the candidates that are missing are drawn once more at
    another one: with a seed they are the same ones. Serve replaces dead replicas.
    """

    recovers: ClassVar[bool] = True

    def __init__(
        self, handle: DeploymentHandle[Any], policy: str, path: str, start_timeout_s: float = 600.0
    ) -> None:
        self.info = ModelInfo(path, "unknown", 0)
        self._handle, self._policy, self._start_timeout_s = handle, policy, start_timeout_s
        self._finds_calls = False
        self._started = False
        self._unfinished = 0

    async def start(self) -> None:
        """Wait for the first replica and ask it what it serves.

        Raises:
            CheckpointError: no replica was ready in time.
        """
        described: dict[str, PolicyDescription]
        try:
            async with asyncio.timeout(self._start_timeout_s):
                with engine_failures(self._owner):
                    described = await unwrapped(called(self._handle.describe))
                while not self._replicas:  # noqa: ASYNC110  (Serve's router has no event for it)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise CheckpointError(
                f"no replica of {self._owner} was ready within {self._start_timeout_s:g} s; `serve status` "
                "tells why"
            ) from error
        except EngineError as error:
            raise CheckpointError(f"{self._owner} cannot be served: {error}") from error
        self.info = described[self._policy].info
        self._finds_calls = described[self._policy].finds_calls
        self._started = True

    async def stop(self) -> None:
        """Take no more requests; the replicas are Serve's."""
        self._started = False

    async def check(self) -> None:
        """Do nothing: Serve checks the replicas and replaces those that are dead."""

    async def check_weights(self, path: str) -> NewWeights:
        """Refuse: each replica would have to change at the same moment."""
        raise ReloadRefusedError(
            f"{self._owner} runs as a fleet, whose weights are not changed in place; deploy the fleet again "
            "with the new path, which replaces one replica after another"
        )

    async def change_weights(self, new: NewWeights, *, keep_requests: bool = False) -> None:
        """Refuse, as :meth:`check_weights`."""
        await self.check_weights(new.checkpoint.path)

    @property
    def alive(self) -> bool:
        """True if at least one replica takes requests."""
        return self._started and self._replicas > 0

    @property
    def trouble(self) -> str:
        """A text if no replica takes requests."""
        if not self._started:
            return "not started, or stopped"
        return "" if self._replicas else "no replica runs; Serve starts new ones"

    @property
    def unfinished(self) -> int:
        """The number of sequences that this front end waits for."""
        return self._unfinished

    async def metrics(self) -> list[Metric]:
        """The metrics of one replica's engine; empty if it does not answer in time."""
        try:
            async with asyncio.timeout(_METRICS_TIMEOUT_S):
                with engine_failures(self._owner):
                    found = await unwrapped(called(self._handle.metrics))
        except (TimeoutError, EngineError):
            return []
        metrics: list[Metric] = found[self._policy]
        return metrics

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
        if not self._finds_calls:
            return None
        found: FoundCalls | None = await self._ask("find_calls", candidate, tools)
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
        call = uuid4().hex
        self._unfinished += num_samples
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    async with aclosing(
                        self._drawn(prompt_token_ids, sampling, missing, request_id, call)
                    ) as candidates:
                        async for candidate in candidates:
                            missing.discard(candidate.index)
                            self._unfinished -= 1
                            yield candidate
                except EngineDeadError:
                    if not missing:  # it died after its last candidate
                        break
                    if attempt == ATTEMPTS or not self.alive:
                        raise
                    continue
                break
            if missing:
                raise CandidateCountError(expected=num_samples, received=num_samples - len(missing))
        finally:
            self._unfinished -= len(missing)

    async def _drawn(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        indices: set[int],
        request_id: str,
        call: str,
    ) -> AsyncGenerator[Candidate, None]:
        with engine_failures(self._owner):
            response = called(
                self._streaming.generate,
                prompt_token_ids,
                self._policy,
                sampling,
                sorted(indices),
                request_id,
                dict(trace_headers.get()),
                sequences=len(indices),
                affinity=True,
                retry_of=call,
            )
            async with aclosing(unwrapped_all(response)) as candidates:
                async for candidate in candidates:
                    yield candidate

    async def stream(
        self, prompt_token_ids: list[int], sampling: Sampling, index: int, request_id: str
    ) -> AsyncGenerator[Partial, None]:
        """Yield a sample while it grows; steps that a slow reader missed are merged into one."""
        self._check(prompt_token_ids, sampling)
        logprobs = () if sampling.logprobs else None
        current = [Partial(index, "", (), None, logprobs)]
        changed = asyncio.Event()

        async def read() -> None:
            async with aclosing(
                self._grown(prompt_token_ids, sampling, index, request_id)
            ) as growths:
                async for growth in growths:
                    current[0] = _grown(current[0], growth)
                    changed.set()

        self._unfinished += 1
        # A task reads ahead, so that a slow reader gets the latest state and not a queue of outdated ones.
        reader = asyncio.create_task(read())
        reader.add_done_callback(lambda _: changed.set())
        seen = current[0]
        try:
            while not (reader.done() and seen is current[0]):
                await changed.wait()
                changed.clear()
                if seen is not current[0]:
                    seen = current[0]
                    yield seen
            reader.result()
            if seen.finish_reason is None:
                raise EngineError(f"{self._owner} ended a sample without finishing it")
        finally:
            self._unfinished -= 1
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _grown(
        self, prompt_token_ids: list[int], sampling: Sampling, index: int, request_id: str
    ) -> AsyncGenerator[Growth, None]:
        """The growth of one sample, which begins again at another replica only if none has been seen."""
        call = uuid4().hex
        for attempt in range(1, ATTEMPTS + 1):
            begun = finished = False
            try:
                with engine_failures(self._owner):
                    response = called(
                        self._streaming.stream,
                        prompt_token_ids,
                        self._policy,
                        sampling,
                        index,
                        request_id,
                        dict(trace_headers.get()),
                        sequences=1,
                        affinity=True,
                        retry_of=call,
                    )
                    async with aclosing(unwrapped_all(response)) as growths:
                        async for growth in growths:
                            begun = True
                            finished = growth.finish_reason is not None
                            yield growth
                return
            except EngineDeadError:
                if finished:
                    return
                if begun or attempt == ATTEMPTS or not self.alive:
                    raise

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
        call = uuid4().hex
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with engine_failures(self._owner):
                    return await unwrapped(
                        called(self._handle.ask, self._policy, method, *args, retry_of=call)
                    )
            except EngineDeadError:
                if attempt == ATTEMPTS or not self.alive:
                    raise
        raise AssertionError("unreachable")

    @property
    def _streaming(self) -> DeploymentHandle[Any]:
        return self._handle.options(stream=True)

    @property
    def _owner(self) -> str:
        return f"policy {self._policy!r}"

    @property
    def _replicas(self) -> int:
        return running_replicas(self._handle.app_name, self._handle.deployment_name)

    def _check(self, token_ids: list[int], sampling: Sampling) -> None:
        self._check_started()
        check_fits(self.info, token_ids, sampling)

    def _check_started(self) -> None:
        if not self._started:
            raise NotReadyError(f"the engine of {self._owner} has not started")
        # Without a replica, Serve would let the call wait for one.
        if not self._replicas:
            raise EngineDeadError(f"{self._owner}: {self.trouble}")


def _grown(before: Partial, growth: Growth) -> Partial:
    logprobs = growth.token_logprobs
    return Partial(
        before.index,
        before.text + growth.text,
        before.token_ids + growth.token_ids,
        growth.finish_reason,
        None if logprobs is None else (before.token_logprobs or ()) + logprobs,
    )
