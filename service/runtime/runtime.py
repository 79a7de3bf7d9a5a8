"""Owns what lives as long as the process: engines, scorers, admission, metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

from service.admission.admission import Admission
from service.context.request_context import PromptProgress, record_prompt
from service.runtime.batching_scorer import BatchingScorer, MeteredScorer
from service.runtime.in_flight import InFlightRequests
from service.runtime.metrics import Metrics
from service.runtime.supervisor import RestartablePart, Supervisor
from service.settings import REFERENCE, ServiceSettings
from service.strategies import (
    STRATEGIES,
    UNOBSERVED,
    Observer,
    Outcome,
    Resources,
    Single,
    Strategy,
    Task,
)
from service.strategies.request_fields import configured
from vbon.embedders import Embedder, open_embedder
from vbon.engine import Engine, ModelInfo, Sampling, check_fits
from vbon.errors import (
    EngineDeadError,
    InvalidInputError,
    NotReadyError,
    RewardDeadError,
)
from vbon.prompts import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mode:
    """A strategy over a policy, under the name requests use."""

    name: str
    strategy: Strategy
    policy: str


@dataclass(frozen=True, slots=True)
class PromptResult:
    """One prompt's outcome with the time it took from arrival.

    Attributes:
        policy: what decoded it, which a reload may have replaced since.
        scorer: what scored it, likewise; ``None`` where nothing could.
    """

    mode: Mode
    policy: ModelInfo
    scorer: BatchingScorer | None
    prompt_tokens: int
    num_samples: int
    outcome: Outcome
    queue_ms: float
    scoring_ms: float
    total_ms: float


class Runtime:
    """Everything a request needs. Build it with :func:`service.runtime.build.build_runtime`.

    Attributes:
        created: Unix time of construction, seconds.
        failure: why start-up failed, once it has.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        policies: dict[str, Engine],
        reward: BatchingScorer | None,
        gold: BatchingScorer | None,
        embedder: Embedder | None = None,
    ) -> None:
        self.created = int(time.time())
        self.settings = settings
        self.policies = policies
        self.reward, self.gold = reward, gold
        self.embedder = embedder or open_embedder(settings.embedder)
        self.metrics = Metrics()
        limits = settings.limits
        self.admission = Admission(
            running=limits.running_sequences,
            waiting=limits.waiting_sequences,
            running_tokens=limits.running_tokens,
            max_queue_s=limits.max_queue_s,
        )
        self.metrics.running.set_function(lambda: self.admission.running)
        self.metrics.waiting.set_function(lambda: self.admission.waiting)
        self.metrics.scores_waiting.set_function(lambda: self.reward.waiting if self.reward else 0)
        self.in_flight = InFlightRequests()
        for name in policies:
            self.metrics.engine_alive.labels(name).set_function(partial(self._alive, name))
            self.metrics.engine_sequences.labels(name).set_function(partial(self._unfinished, name))
        self.supervisor = Supervisor(
            self._parts(),
            backoff_s=settings.restarts.backoff_s,
            max_backoff_s=settings.restarts.max_backoff_s,
            on_recovered=self.metrics.recovered,
        )
        for name in self.supervisor.supervised:
            self.metrics.restarts.labels(name)  # shown as 0 before the first
        self.metrics.tasks.set_function(_tasks)
        self.metrics.ready.set_function(lambda: float(self.ready))
        self.modes = {name: Mode(name, Single(), name) for name in policies}
        for name, strategy in STRATEGIES.items():
            if name in self.modes:
                raise InvalidInputError(
                    f"policy name {name!r} is taken by a strategy; rename the policy",
                    field="policies",
                )
            if reward is not None:
                self.modes[name] = Mode(name, strategy(), REFERENCE)
        self.failure: Exception | None = None
        self._loaded = False

    @property
    def ready(self) -> bool:
        """All models loaded and warm, every engine and reward worker alive, and not shutting down."""
        return (
            self._loaded
            and not self.in_flight.closing
            and all(engine.alive for engine in self.policies.values())
            and all(scorer.alive for scorer in self.scorers.values())
        )

    @property
    def scorers(self) -> dict[str, BatchingScorer]:
        """Reward and gold reward model by these names, where there are any."""
        found = {"reward": self.reward, "gold": self.gold}
        return {name: scorer for name, scorer in found.items() if scorer is not None}

    @property
    def revisions(self) -> dict[str, str]:
        """Of every model, by the name of its policy, or ``reward`` and ``gold``."""
        engines = {name: engine.info.revision for name, engine in self.policies.items()}
        return engines | {f"{name} model": one.revision for name, one in self.scorers.items()}

    def _parts(self) -> dict[str, RestartablePart]:
        parts: dict[str, RestartablePart] = {
            name: engine for name, engine in self.policies.items() if not engine.recovers
        }
        return parts | self.scorers

    def status(self) -> str:
        """One sentence on readiness."""
        if self.failure is not None:
            return f"start-up failed: {self.failure}"
        troubles = "".join(
            f"; {name}: {engine.trouble}"
            for name, engine in self.policies.items()
            if engine.trouble
        )
        if self.in_flight.closing:
            return "shutting down"
        if not self._loaded:
            return f"models are loading{troubles}"
        if self.supervisor.trouble:
            return self.supervisor.trouble
        dead = [name for name, part in (self.policies | self.scorers).items() if not part.alive]
        return (f"{', '.join(dead)} has died" if dead else "ready") + troubles

    async def start(self) -> None:
        """Load and warm up everything; engines start side by side."""
        begun = perf_counter()
        try:
            await asyncio.gather(
                *(scorer.start() for scorer in self.scorers.values()),
                *(engine.start() for engine in self.policies.values()),
            )
            for scorer in self.scorers.values():
                await scorer.warm_up()
            self._loaded = True
            self.supervisor.start()
            logger.info("ready after %.1f s: modes %s", perf_counter() - begun, list(self.modes))
        except Exception as error:
            self.failure = error
            raise

    async def stop(self) -> None:
        """Free engines and scorers."""
        self._loaded = False
        await self.supervisor.stop()
        await asyncio.gather(*(engine.stop() for engine in self.policies.values()))
        for scorer in self.scorers.values():
            await scorer.stop()

    async def adopt_engines(self, engines: Mapping[str, Engine]) -> None:
        """Let requests that come from here on use these, which are warm, in the place of their like."""
        self.policies = {**self.policies, **engines}
        for name, engine in engines.items():
            if name in self.supervisor.supervised:
                await self.supervisor.replace(name, engine)

    async def adopt_scorer(self, name: str, scorer: BatchingScorer) -> None:
        """The same of the scorer ``reward`` or ``gold``."""
        if name == "reward":
            self.reward = scorer
        else:
            self.gold = scorer
        await self.supervisor.replace(name, scorer)

    def mode(
        self, name: str, settings: Mapping[str, Any] | None = None, policy: str | None = None
    ) -> Mode:
        """The mode a request named, with the settings and over the policy it asks for.

        Raises:
            InvalidInputError: unknown, known but without its model, or not with these settings.
        """
        if name in self.modes:
            mode = self.modes[name]
            strategy = configured(name, mode.strategy, settings or {})
            return Mode(name, strategy, self._policy(mode, policy))
        if name in STRATEGIES:
            raise InvalidInputError(
                f"mode {name!r} needs a reward model and none is configured; set `reward`",
                field="mode",
            )
        raise InvalidInputError(
            f"mode {name!r} is not configured; this server has {', '.join(self.modes)}. "
            f"To add it: --policies {name}=DIR",
            field="mode",
        )

    def _available(self, mode: Mode) -> tuple[Engine, BatchingScorer | None]:
        """What a mode works with, or why it cannot; the death of what it does not need is nothing to it.

        Raises:
            NotReadyError, EngineDeadError, RewardDeadError
        """
        if not self._loaded:
            raise NotReadyError(self.status())
        engine, reward = self.policies[mode.policy], self.reward
        if not engine.alive:
            raise EngineDeadError(
                f"the engine of {mode.policy} has died: {engine.trouble or self.status()}"
            )
        if reward is None or reward.alive:
            return engine, reward
        if mode.strategy.reranks:
            raise RewardDeadError(f"mode {mode.name!r} needs the reward model: {self.status()}")
        return engine, None  # an answer of one sample, without the reward it is not chosen by

    def _policy(self, mode: Mode, asked: str | None) -> str:
        if asked is None or asked == mode.policy:
            return mode.policy
        if not mode.strategy.reranks:
            raise InvalidInputError(
                f"mode {mode.name!r} is one sample of policy {mode.policy!r}; ask for mode {asked!r}",
                field="policy",
            )
        if asked not in self.policies:
            raise InvalidInputError(
                f"policy {asked!r} is not configured; this server has {', '.join(self.policies)}",
                field="policy",
            )
        return asked

    async def answer(
        self,
        mode: Mode,
        prompt: Prompt,
        sampling: Sampling,
        num_samples: int,
        request_id: str,
        *,
        score: bool = True,
        timeout_s: float | None = None,
        observer: Observer = UNOBSERVED,
    ) -> PromptResult:
        """Answer one prompt: wait for a place, decode, rerank, record.

        Args:
            timeout_s: a time limit shorter than the server's.
            observer: told of what happens on the way.

        Raises:
            NotReadyError, OverloadedError, RequestTimeoutError, InvalidInputError, EngineError,
            RewardError: exactly one of them, or an answer is returned.
        """
        engine, reward = self._available(mode)
        mode = replace(mode, strategy=mode.strategy.fitted(num_samples, sampling.max_tokens))
        if mode.strategy.uses_logprobs and not sampling.logprobs:
            sampling = replace(sampling, logprobs=True)
        drawn = num_samples if mode.strategy.reranks else 1
        scorer = MeteredScorer(reward) if reward is not None else None
        resources = Resources(engine, self.policies, scorer, self.embedder)
        limit, named = self.settings.limits.time_limit(timeout_s)
        sequences = mode.strategy.sequences(num_samples)
        most = mode.strategy.most_candidates(drawn)
        arrived = perf_counter()
        progress = record_prompt(
            PromptProgress(
                answer_id=request_id,
                mode=mode.name,
                policy=mode.policy,
                num_samples=drawn,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                scored=scorer is not None and (score or mode.strategy.reranks),
                arrived_s=arrived,
            )
        )
        others = tuple(self.policies.values()) if mode.strategy.uses_policies else ()
        async with self.in_flight.track(limit, named, (engine, reward, *others)):
            token_ids = await engine.encode(prompt)
            check_fits(engine.info, token_ids, sampling)
            progress.encoded_s, progress.prompt_tokens = perf_counter(), len(token_ids)
            task = Task(prompt, token_ids, sampling, num_samples, request_id, score, observer)
            async with self.admission.enter(
                sequences, sampling.priority, max_tokens=sampling.max_tokens, candidates=most
            ) as entry:
                admitted = progress.admitted_s = perf_counter()
                observer.admitted(len(token_ids))
                outcome = await mode.strategy.run(task, resources)
                entry.spent(outcome.generated_tokens)
        finished = perf_counter()
        _note(progress, outcome)
        answer = PromptResult(
            mode=mode,
            policy=engine.info,
            scorer=reward,
            prompt_tokens=len(token_ids),
            num_samples=drawn,
            outcome=outcome,
            queue_ms=(admitted - arrived) * 1e3,
            scoring_ms=0.0 if scorer is None else scorer.busy_s * 1e3,
            total_ms=(finished - arrived) * 1e3,
        )
        self.metrics.observe(
            mode.name,
            outcome,
            prompt_tokens=len(token_ids),
            arrived_s=arrived,
            queue_ms=answer.queue_ms,
            total_ms=answer.total_ms,
        )
        if mode.strategy.reranks or (score and self.reward is not None):
            unscored = sum(scored.reward is None for scored in outcome.candidates)
            self.metrics.unscored.labels(mode.name).inc(unscored)
        return answer

    def _alive(self, policy: str) -> float:
        return float(self.policies[policy].alive)

    def _unfinished(self, policy: str) -> float:
        return float(self.policies[policy].unfinished)


def _note(progress: PromptProgress, outcome: Outcome) -> None:
    progress.decode_ms, progress.rerank_ms = outcome.decode_ms, outcome.rerank_ms
    progress.candidates = len(outcome.candidates)
    progress.generated_tokens = outcome.generated_tokens
    progress.returned_tokens = outcome.returned_tokens
    progress.finish_reason = outcome.selected.candidate.finish_reason


def _tasks() -> float:
    return float(len(asyncio.all_tasks()))
