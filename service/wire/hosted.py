"""Engines and scorers as the wire serves them: the methods that clients call, with plain data."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
from prometheus_client import Metric

from service.observability.withheld import without_text
from service.wire.errors import ErrorParts, error_parts
from service.wire.interface import interface_of
from vbon.engine.fan_out import as_they_finish
from vbon.engine.protocol import (
    Candidate,
    Engine,
    FinishReason,
    FoundCalls,
    ModelInfo,
    Partial,
    Sampling,
)
from vbon.errors import RewardDeadError, RewardError, VbonError
from vbon.prompts import Prompt

logger = logging.getLogger(__name__)

# Seconds between two looks at what an engine or scorer has to say of itself.
_LOOK_S = 0.1

State = TypeVar("State")

# Counts the block as a use of an engine or scorer, which a reload waits for.
Using = Callable[[object], AbstractAsyncContextManager[None]]


def _uncounted(_: object) -> AbstractAsyncContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class EngineState:
    """The facts about an engine that its clients must know without asking."""

    info: ModelInfo
    alive: bool
    trouble: str
    finds_calls: bool


@dataclass(frozen=True, slots=True)
class ScorerState:
    """The facts about a scorer that its clients must know without asking."""

    name: str
    revision: str
    alive: bool


class Growth(msgspec.Struct, array_like=True, frozen=True):
    """The part of a streamed sample that is new since the last one."""

    text: str
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...] | None
    finish_reason: FinishReason | None


class MetricParts(msgspec.Struct, array_like=True, frozen=True):
    """A metric of Prometheus; each sample is its name, its labels and its value."""

    name: str
    documentation: str
    kind: str
    unit: str
    samples: list[tuple[str, dict[str, str], float]]

    @classmethod
    def of(cls, metric: Metric) -> MetricParts:
        """The data of a metric."""
        samples = [(one.name, dict(one.labels), one.value) for one in metric.samples]
        return cls(metric.name, metric.documentation, metric.type, metric.unit, samples)

    @property
    def metric(self) -> Metric:
        """The metric of these data."""
        found = Metric(self.name, self.documentation, self.kind, self.unit)
        for name, labels, value in self.samples:
            found.add_sample(name, labels, value)
        return found


class HostedEngines:
    """The engines of a process, each by the name of its policy.

    Args:
        engines: may change while it is served, as a reload replaces an engine.
        using: counts the calls of an engine.
    """

    def __init__(self, engines: Mapping[str, Engine], using: Using = _uncounted) -> None:
        self._engines, self._using = engines, using

    async def watch(self) -> AsyncGenerator[dict[str, EngineState], None]:
        """Yield the states of all engines, at once and whenever one changes."""

        def states() -> dict[str, EngineState]:
            return {
                name: EngineState(engine.info, engine.alive, engine.trouble, engine.finds_calls)
                for name, engine in self._engines.items()
            }

        async with aclosing(_changes(states)) as found:
            async for state in found:
                yield state

    async def encode(self, policy: str, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, as :meth:`Engine.encode`."""
        engine = self._engines[policy]
        async with self._using(engine):
            return await engine.encode(prompt)

    async def decode(self, policy: str, prompt_token_ids: list[int], token_ids: list[int]) -> str:
        """The text of token ids, as :meth:`Engine.decode`."""
        engine = self._engines[policy]
        async with self._using(engine):
            return await engine.decode(prompt_token_ids, token_ids)

    async def find_calls(
        self, policy: str, candidate: Candidate, tools: list[dict[str, Any]]
    ) -> FoundCalls | None:
        """The calls of tools in a candidate, as :meth:`Engine.find_calls`."""
        engine = self._engines[policy]
        async with self._using(engine):
            return await engine.find_calls(candidate, tools)

    async def logprobs(
        self,
        policy: str,
        prompt_token_ids: list[int],
        completion_token_ids: list[int],
        request_id: str,
        priority: int,
    ) -> list[float]:
        """The log-probabilities of a completion, as :meth:`Engine.logprobs`."""
        engine = self._engines[policy]
        async with self._using(engine):
            return await engine.logprobs(
                prompt_token_ids, completion_token_ids, request_id, priority
            )

    async def metrics(self, policy: str) -> list[MetricParts]:
        """The metrics of an engine, as :meth:`Engine.metrics`."""
        return [MetricParts.of(one) for one in await self._engines[policy].metrics()]

    async def generate(
        self,
        policy: str,
        prompt_token_ids: list[int],
        sampling: Sampling,
        indices: list[int],
        request_id: str,
    ) -> AsyncGenerator[Candidate, None]:
        """Yield the candidates of these indices, which ascend and may have gaps, as they finish."""
        engine = self._engines[policy]
        if indices == list(range(indices[0], indices[0] + len(indices))):
            drawn = engine.generate(
                prompt_token_ids, sampling, len(indices), request_id, first_index=indices[0]
            )
        else:
            drawn = as_they_finish(
                _one(engine, prompt_token_ids, sampling, index, f"{request_id}-{index}")
                for index in indices
            )
        async with self._using(engine), aclosing(drawn) as candidates:
            async for candidate in candidates:
                yield candidate

    async def stream(
        self,
        policy: str,
        prompt_token_ids: list[int],
        sampling: Sampling,
        index: int,
        request_id: str,
    ) -> AsyncGenerator[Growth, None]:
        """Yield what is new of a sample while it grows."""
        before = Partial(index, "", (), None, () if sampling.logprobs else None)
        engine = self._engines[policy]
        async with (
            self._using(engine),
            aclosing(engine.stream(prompt_token_ids, sampling, index, request_id)) as partials,
        ):
            async for partial in partials:
                yield _growth(before, partial)
                before = partial


ENGINES = interface_of(
    HostedEngines,
    "watch",
    "encode",
    "decode",
    "find_calls",
    "logprobs",
    "metrics",
    "generate",
    "stream",
    lasting=("watch",),
)


class Scorer(Protocol):
    """The part of a served scorer that the wire needs."""

    name: str

    @property
    def revision(self) -> str:
        """The model's revision."""

    @property
    def alive(self) -> bool:
        """True while the scorer can take requests."""

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        """The raw reward."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The raw reward of each text of a call, or its error.

    Attributes:
        revisions: of the reward model that scored each.
    """

    rewards: list[float | ErrorParts | None]
    revisions: list[str]


class HostedScorer:
    """A scorer, whose batches have texts of all clients.

    Args:
        scorer: finds the scorer, which a reload may replace.
        using: counts the calls of a scorer.
    """

    def __init__(self, scorer: Callable[[], Scorer], using: Using = _uncounted) -> None:
        self._scorer, self._using = scorer, using
        self._now = scorer()
        self._before: Scorer | None = None
        self._calls: Counter[int] = Counter()

    async def watch(self) -> AsyncGenerator[ScorerState, None]:
        """Yield the scorer's state, at once and whenever it changes."""

        def state() -> ScorerState:
            scorer = self._latest()
            return ScorerState(scorer.name, scorer.revision, scorer.alive)

        async with aclosing(_changes(state)) as found:
            async for one in found:
                yield one

    async def score(self, texts: list[tuple[Prompt, str]], revisions: list[str | None]) -> Scores:
        """The raw reward of each text, or its error.

        Args:
            revisions: of the reward model that must score each text; ``None`` for any. The one that a reload
                has replaced is used for as long as anybody else uses it.
        """
        scorers = [self._serving(revision) for revision in revisions]
        async with AsyncExitStack() as stack:
            for used in {id(one): one for one in scorers if one is not None}.values():
                await stack.enter_async_context(self._using(used))
                stack.enter_context(self._call_of(used))  # left before a reload may stop it
            scores = await asyncio.gather(
                *(
                    _replaced() if scorer is None else scorer.score(prompt, text)
                    for scorer, (prompt, text) in zip(scorers, texts, strict=True)
                ),
                return_exceptions=True,
            )
            served = ["" if one is None else one.revision for one in scorers]
        return Scores(
            [_error(one) if isinstance(one, BaseException) else one for one in scores], served
        )

    def _serving(self, revision: str | None) -> Scorer | None:
        """The scorer of this revision; ``None`` if it has gone."""
        now, before = self._latest(), self._before
        if revision in (None, now.revision):
            return now
        return before if before is not None and before.revision == revision else None

    @contextmanager
    def _call_of(self, scorer: Scorer) -> Iterator[None]:
        self._calls[id(scorer)] += 1
        try:
            yield
        finally:
            self._calls[id(scorer)] -= 1
            if not self._calls[id(scorer)]:
                del self._calls[id(scorer)]

    def _latest(self) -> Scorer:
        """The scorer now; the one before is forgotten with its last call, since a reload stops it then."""
        now = self._scorer()
        if now is not self._now:
            self._before, self._now = self._now, now
        if self._before is not None and id(self._before) not in self._calls:
            self._before = None
        return now


SCORER = interface_of(HostedScorer, "watch", "score", lasting=("watch",))


async def _replaced() -> float | None:
    raise RewardDeadError(
        "the reward model was replaced while this request was scored, and rewards of two models cannot be "
        "compared; send the request again"
    )


def _error(error: BaseException) -> ErrorParts:
    if isinstance(error, VbonError):
        return error_parts(error)
    logger.error("a text could not be scored", exc_info=without_text(error))
    return error_parts(RewardError(f"scoring failed: {type(error).__name__}"))


async def _changes(look: Callable[[], State]) -> AsyncGenerator[State, None]:
    """The values of a function, at once and whenever one differs from the one before."""
    seen = look()
    yield seen
    while True:
        await asyncio.sleep(_LOOK_S)
        now = look()
        if now != seen:
            seen = now
            yield seen


async def _one(
    engine: Engine,
    prompt_token_ids: list[int],
    sampling: Sampling,
    index: int,
    request_id: str,
) -> Candidate:
    async with aclosing(
        engine.generate(prompt_token_ids, sampling, 1, request_id, first_index=index)
    ) as candidates:
        return await anext(candidates)


def _growth(before: Partial, now: Partial) -> Growth:
    seen = len(before.token_ids)
    logprobs: Sequence[float] | None = now.token_logprobs
    return Growth(
        now.text[len(before.text) :],
        now.token_ids[seen:],
        None if logprobs is None else tuple(logprobs[seen:]),
        now.finish_reason,
    )
