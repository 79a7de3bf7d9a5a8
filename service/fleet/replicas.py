"""The replicas of a fleet: an engine of a policy each, or a reward model each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from importlib import import_module
from typing import Any

from service.fleet.calls import Failure, Growth, PolicyDescription, Trace
from service.observability.logs import set_up_logs
from service.observability.withheld import without_text
from service.runtime.reload import ModelBuilder
from service.settings import ServiceSettings
from vbon.engine import Candidate, Engine, Partial, Sampling
from vbon.engine.fan_out import as_they_finish
from vbon.errors import EngineError, RewardError, VbonError
from vbon.prompts import Prompt
from vbon.trace_context import trace_headers

logger = logging.getLogger(__name__)


def open_builder(path: str, settings: ServiceSettings) -> ModelBuilder:
    """The builder of engines and scorers that ``MODULE:CLASS`` names."""
    module, _, name = path.partition(":")
    builder: ModelBuilder = getattr(import_module(module), name)(settings)
    return builder


class PolicyReplica:
    """One engine of a policy, with the policies that are LoRA adapters on it.

    Calls that fail return or yield a :class:`~service.fleet.calls.Failure`.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: ServiceSettings, policy: str, builder: str
    ) -> None:
        set_up_logs(settings)
        self._engines = open_builder(builder, settings).engines(policy, {})
        await asyncio.gather(*(engine.start() for engine in self._engines.values()))

    async def __del__(self) -> None:
        """Stop the engine when Serve takes the replica down."""
        await asyncio.gather(*(engine.stop() for engine in self._engines.values()))

    async def check_health(self) -> None:
        """Fail if the engine is dead or hangs, so that Serve replaces this replica.

        Raises:
            RuntimeError: an engine is dead.
        """
        for name, engine in self._engines.items():
            await engine.check()
            if not engine.alive:
                raise RuntimeError(f"the engine of {name} is dead: {engine.trouble}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The sequences that this engine has to decode, by which Serve scales the policy."""
        return {LOAD: float(sum(engine.unfinished for engine in self._engines.values()))}

    async def describe(self) -> dict[str, PolicyDescription]:
        """The policies that this replica serves."""
        return {
            name: PolicyDescription(engine.info, engine.finds_calls)
            for name, engine in self._engines.items()
        }

    async def metrics(self) -> dict[str, list[Any]]:
        """The metrics of each policy's engine."""
        return {name: await engine.metrics() for name, engine in self._engines.items()}

    async def ask(self, policy: str, method: str, *args: Any, **_: Any) -> Any:
        """The result of one of the engine's methods that return one."""
        try:
            return await getattr(self._engines[policy], method)(*args)
        except (
            Exception
        ) as error:  # any failure is the caller's to know, in a form that it can read
            return _failure(error)

    async def generate(
        self,
        prompt_token_ids: list[int],
        policy: str,
        sampling: Sampling,
        indices: Sequence[int],
        request_id: str,
        trace: Trace,
        **_: Any,
    ) -> AsyncGenerator[Candidate | Failure, None]:
        """Yield the candidates of these indices, as they finish."""
        trace_headers.set(trace)
        engine = self._engines[policy]
        try:
            async with aclosing(
                _of_indices(engine, prompt_token_ids, sampling, indices, request_id)
            ) as candidates:
                async for candidate in candidates:
                    yield candidate
        except Exception as error:
            yield _failure(error)

    async def stream(
        self,
        prompt_token_ids: list[int],
        policy: str,
        sampling: Sampling,
        index: int,
        request_id: str,
        trace: Trace,
        **_: Any,
    ) -> AsyncGenerator[Growth | Failure, None]:
        """Yield what is new of a sample while it grows."""
        trace_headers.set(trace)
        before = Partial(index, "", (), None, () if sampling.logprobs else None)
        try:
            async with aclosing(
                self._engines[policy].stream(prompt_token_ids, sampling, index, request_id)
            ) as partials:
                async for partial in partials:
                    yield _growth(before, partial)
                    before = partial
        except Exception as error:
            yield _failure(error)


class RewardReplica:
    """One reward model, whose batches have texts of all front ends."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: ServiceSettings, which: str, builder: str
    ) -> None:
        set_up_logs(settings)
        self._scorer = open_builder(builder, settings).scorer(which)
        await self._scorer.start()
        await self._scorer.warm_up()

    async def __del__(self) -> None:
        """Stop the reward model when Serve takes the replica down."""
        await self._scorer.stop()

    async def check_health(self) -> None:
        """Fail if the reward model's process is dead, so that Serve replaces this replica.

        Raises:
            RuntimeError: the process is dead.
        """
        if not self._scorer.alive:
            raise RuntimeError(f"the reward model {self._scorer.name} is dead")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The texts that wait for their scores, by which Serve scales the reward model."""
        return {LOAD: float(self._scorer.waiting)}

    async def describe(self) -> tuple[str, str]:
        """The reward model's name and revision."""
        return self._scorer.name, self._scorer.revision

    async def score(
        self, texts: Sequence[tuple[Prompt, str]], trace: Trace, **_: Any
    ) -> list[float | Failure | None]:
        """The raw reward of each text, or its failure."""
        trace_headers.set(trace)
        scores = await asyncio.gather(
            *(self._scorer.score(prompt, text) for prompt, text in texts), return_exceptions=True
        )
        return [
            _failure(one, RewardError) if isinstance(one, BaseException) else one for one in scores
        ]


# The name of the load in Serve's autoscaling metrics.
LOAD = "load"


async def _of_indices(
    engine: Engine,
    prompt_token_ids: list[int],
    sampling: Sampling,
    indices: Sequence[int],
    request_id: str,
) -> AsyncGenerator[Candidate, None]:
    """The candidates of these indices, which ascend and may have gaps."""
    if list(indices) == list(range(indices[0], indices[0] + len(indices))):
        drawn = engine.generate(
            prompt_token_ids, sampling, len(indices), request_id, first_index=indices[0]
        )
    else:
        drawn = as_they_finish(
            _one(engine, prompt_token_ids, sampling, index, f"{request_id}-{index}")
            for index in indices
        )
    async with aclosing(drawn) as candidates:
        async for candidate in candidates:
            yield candidate


async def _one(
    engine: Engine, prompt_token_ids: list[int], sampling: Sampling, index: int, request_id: str
) -> Candidate:
    async with aclosing(
        engine.generate(prompt_token_ids, sampling, 1, request_id, first_index=index)
    ) as candidates:
        return await anext(candidates)


def _growth(before: Partial, now: Partial) -> Growth:
    logprobs = now.token_logprobs
    return Growth(
        now.text[len(before.text) :],
        now.token_ids[len(before.token_ids) :],
        None if logprobs is None else logprobs[len(before.token_ids) :],
        now.finish_reason,
    )


def _failure(error: BaseException, kind: type[VbonError] = EngineError) -> Failure:
    if isinstance(error, VbonError):
        return Failure(error)
    logger.error("a call failed", exc_info=without_text(error))
    return Failure(kind(f"the call failed: {type(error).__name__}"))
