"""The runtime: engines, scorers, admission and metrics, which live as long as the process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

from service.admission.admission import Admission
from service.admission.asks import Admits
from service.context.request_context import PromptProgress
from service.context.scored_by import one_reward_model
from service.runtime.batching_scorer import MeteredScorer
from service.runtime.default_sampling import (
    DefaultSampling,
    default_sampling,
    log_default_sampling,
)
from service.runtime.in_flight import InFlightRequests
from service.runtime.limits import open_admission
from service.runtime.metrics import AllMetrics, Metrics
from service.runtime.modes import Mode, configured_modes, find_mode
from service.runtime.prompt import (
    AnswerSink,
    PromptRequest,
    PromptResult,
    begin_progress,
    note_outcome,
)
from service.runtime.routing import Router
from service.runtime.served_scorer import ServedScorer
from service.runtime.supervisor import RestartablePart, Supervisor
from service.settings import AUTO, ServiceSettings
from service.strategies import Admitted, Outcome, Resources, Task, ranked
from vbon.embedders import Embedder, open_embedder
from vbon.engine import Engine, check_fits, clipped
from vbon.engine.drawn_by import forget_weights, weights_noted
from vbon.errors import (
    CandidateCountError,
    EngineDeadError,
    InvalidInputError,
    NotReadyError,
    PromptTooLongError,
    RequestTimeoutError,
    RewardDeadError,
    VbonError,
)
from vbon.storage.training_record import TrainingRecord, read_training_record

logger = logging.getLogger(__name__)

# Long prompts of one policy that may wait for its tokenizer; each may be as large as a body.
WAITING_PROMPTS = 64
# Tokens that a second of a tokenizer or chat template counts as, if it led to nothing.
TOKENS_PER_ENCODING_S = 100_000

# Seconds after which an engine in another process is known to be dead, and between two looks at one.
_DEATH_KNOWN_S, _LOOK_S = 0.25, 0.05

# The mode under which failures of /v1/score are counted, which has none.
SCORE = "score"


class Runtime:
    """Everything a request needs. Build one with :func:`service.runtime.build.build_runtime`.

    Attributes:
        created: Unix time of construction, seconds.
        expected: paths of policies that are not served yet, by name.
        failure: the error that stopped start-up; ``None`` if there was none.
        collect: receives answers for training; ``None`` if none are collected.
        router: the rollout's, which answers requests of mode ``auto``; ``None`` if none is rolled out.
        all_metrics: reads the metrics of all processes of the service; ``None`` if this is the only one.
        priced: the router by price; ``None`` while there is no table of measured settings.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        policies: dict[str, Engine],
        reward: ServedScorer | None,
        gold: ServedScorer | None,
        embedder: Embedder | None = None,
        admission: Admits | None = None,
    ) -> None:
        self.created = int(time.time())
        self.settings = settings
        self.policies = policies
        self.reward, self.gold = reward, gold
        self.embedder = embedder or open_embedder(settings.embedder)
        self.router: Router | None = None
        self.priced: Router | None = None
        self.modes = self._configured_modes()
        self.metrics = Metrics()
        self.admission: Admits = admission or open_admission(settings.limits)
        self._encoding: dict[str, Admission] = {}
        self.in_flight = InFlightRequests()
        self.supervisor = Supervisor(
            self._restartable_parts(),
            backoff_s=settings.restarts.backoff_s,
            max_backoff_s=settings.restarts.max_backoff_s,
            on_recovered=self.metrics.recovered,
        )
        self.expected: dict[str, str] = {}
        self._records: tuple[object, dict[str, TrainingRecord | None]] = (None, {})
        self.failure: Exception | None = None
        self.collect: AnswerSink | None = None
        self.all_metrics: AllMetrics | None = None
        self._loaded = False
        self._connect_gauges()

    def _restartable_parts(self) -> dict[str, RestartablePart]:
        parts: dict[str, RestartablePart] = {
            name: engine for name, engine in self.policies.items() if not engine.recovers
        }
        return parts | self.scorers

    def _connect_gauges(self) -> None:
        """Make each gauge read its value from this runtime at every scrape."""
        metrics = self.metrics
        metrics.running.set_function(lambda: self.admission.own_running)
        metrics.waiting.set_function(lambda: self.admission.own_waiting)
        metrics.shares_limits.set_function(lambda: float(self.admission.shared))
        metrics.scores_waiting.set_function(lambda: self.reward.waiting if self.reward else 0)
        metrics.tasks.set_function(_tasks)
        metrics.ready.set_function(lambda: float(self.ready))
        for name in self.policies:
            self._connect_engine_gauges(name)
        for name in self.supervisor.supervised:
            metrics.restarts.labels(name)  # creates the series, so that it shows 0 from the start

    def _connect_engine_gauges(self, policy: str) -> None:
        metrics = self.metrics
        metrics.engine_alive.labels(policy).set_function(partial(self._alive, policy))
        metrics.engine_sequences.labels(policy).set_function(partial(self._unfinished, policy))

    def _disconnect_engine_gauges(self, policy: str) -> None:
        self.metrics.engine_alive.remove(policy)
        self.metrics.engine_sequences.remove(policy)

    def _alive(self, policy: str) -> float:
        return float(self.policies[policy].alive)

    def _unfinished(self, policy: str) -> float:
        return float(self.policies[policy].unfinished)

    @property
    def scorers(self) -> dict[str, ServedScorer]:
        """The configured scorers under the names ``reward`` and ``gold``."""
        found = {"reward": self.reward, "gold": self.gold}
        return {name: scorer for name, scorer in found.items() if scorer is not None}

    @property
    def revisions(self) -> dict[str, str]:
        """Each model's revision, by policy name, and by ``reward model`` and ``gold model``."""
        engines = {name: engine.info.revision for name, engine in self.policies.items()}
        return engines | {f"{name} model": one.revision for name, one in self.scorers.items()}

    @property
    def training_records(self) -> dict[str, TrainingRecord | None]:
        """The training record of each served policy, by its name; read anew when a model is replaced."""
        served = {name: (one.info.path, one.info.revision) for name, one in self.policies.items()}
        if self._records[0] != served:
            paths = {name: path for name, (path, _) in served.items()}
            self._records = (
                served,
                {name: read_training_record(path) for name, path in paths.items()},
            )
        return self._records[1]

    @property
    def default_sampling(self) -> DefaultSampling:
        """The sampling of requests that set none. Checkpoints that come and go do not change it."""
        rolled_out = self.settings.distil.policies
        records = {n: one for n, one in self.training_records.items() if n not in rolled_out}
        return default_sampling(self.settings, records)

    @property
    def loaded(self) -> bool:
        """True from the end of start-up to the beginning of :meth:`stop`."""
        return self._loaded

    @property
    def ready(self) -> bool:
        """True if all models are loaded, all engines and scorers alive, and no shutdown has begun.

        The engines of checkpoints that are rolled out do not count, because `auto` can do without them.
        """
        rolled_out = self.settings.distil.policies
        return (
            self._loaded
            and not self.in_flight.closing
            and all(one.alive for name, one in self.policies.items() if name not in rolled_out)
            and all(scorer.alive for scorer in self.scorers.values())
        )

    def status(self) -> str:
        """One sentence on readiness."""
        if self.failure is not None:
            return f"start-up failed: {self.failure}"
        if self.in_flight.closing:
            return "shutting down"
        troubles = "".join(
            f"; {name}: {engine.trouble}"
            for name, engine in self.policies.items()
            if engine.trouble
        )
        if not self._loaded:
            return f"models are loading{troubles}"
        if self.supervisor.trouble:
            return self.supervisor.trouble
        dead = [name for name, part in (self.policies | self.scorers).items() if not part.alive]
        return (f"{', '.join(dead)} has died" if dead else "ready") + troubles

    async def start(self) -> None:
        """Load and warm up all models; engines and scorers start side by side."""
        begun_s = perf_counter()
        try:
            await asyncio.gather(
                self.admission.start(),
                *(scorer.start() for scorer in self.scorers.values()),
                *(engine.start() for engine in self.policies.values()),
            )
            for scorer in self.scorers.values():
                await scorer.warm_up()
            self._loaded = True
            self.supervisor.start()
            logger.info("ready after %.1f s: modes %s", perf_counter() - begun_s, list(self.modes))
            log_default_sampling(self.default_sampling)
        except Exception as error:
            self.failure = error
            raise

    async def stop(self) -> None:
        """Stop supervision, then the engines, then the scorers and the admission."""
        self._loaded = False
        await self.supervisor.stop()
        await asyncio.gather(*(engine.stop() for engine in self.policies.values()))
        for scorer in self.scorers.values():
            await scorer.stop()
        await self.admission.stop()

    def join(self, policy: str, engine: Engine) -> None:
        """Serve a policy that was not served before from a warm engine, as a mode of its name."""
        self.expected.pop(policy, None)
        self._serve({**self.policies, policy: engine})
        self._connect_engine_gauges(policy)
        log_default_sampling(self.default_sampling)
        self._supervise(policy, engine)

    async def leave(self, policy: str) -> Engine:
        """Give new requests this policy no longer, and return its engine, which keeps running.

        Requests in flight go on with it: wait for ``in_flight.until_unused`` before it is stopped.
        """
        engine = self.policies[policy]
        self._serve({name: one for name, one in self.policies.items() if name != policy})
        self._disconnect_engine_gauges(policy)
        await self.supervisor.remove(policy)
        return engine

    async def rename(self, policy: str, name: str) -> Engine | None:
        """Serve a policy under another name from now on, without a moment in which it has none.

        Returns:
            The engine that was served under this name before, as :meth:`leave` returns it.
        """
        engine, replaced = self.policies[policy], self.policies.get(name)
        others = {one: other for one, other in self.policies.items() if one != policy}
        self._serve({**others, name: engine})
        self._disconnect_engine_gauges(policy)
        self._connect_engine_gauges(name)
        await self.supervisor.remove(policy)
        await self.supervisor.remove(name)
        self._supervise(name, engine)
        return replaced

    def _serve(self, policies: dict[str, Engine]) -> None:
        self.policies = policies
        self.modes = self._configured_modes()

    def _configured_modes(self) -> dict[str, Mode]:
        return configured_modes(
            self.policies,
            has_reward=self.reward is not None,
            rolls_out=self.settings.distil.policy is not None,
            has_table=self.priced is not None,
            tuned=self.settings.tuned,
            expected=(*self.settings.expected, *self.settings.distil.policies),
        )

    def serve_by_price(self, router: Router | None) -> None:
        """Answer requests of mode ``auto`` by this router from now on; ``None``: by none."""
        changed = (router is None) != (self.priced is None)
        self.priced = router
        if changed:
            self.modes = self._configured_modes()

    def _supervise(self, policy: str, engine: Engine) -> None:
        if not engine.recovers:
            self.metrics.restarts.labels(policy)
            self.supervisor.add(policy, engine)

    async def adopt_engines(self, engines: Mapping[str, Engine]) -> None:
        """Serve new requests from these warm engines instead of the present ones of the same policies."""
        self.policies = {**self.policies, **engines}
        for name, engine in engines.items():
            if name in self.supervisor.supervised:
                await self.supervisor.replace(name, engine)

    async def adopt_scorer(self, name: str, scorer: ServedScorer) -> None:
        """Score new candidates with this warm scorer instead of the present ``reward`` or ``gold``."""
        if name == "reward":
            self.reward = scorer
        else:
            self.gold = scorer
        await self.supervisor.replace(name, scorer)

    def mode(
        self, name: str, settings: Mapping[str, Any] | None = None, policy: str | None = None
    ) -> Mode:
        """The mode a request names, with its settings and over the policy it asks for.

        Raises:
            InvalidInputError: as :func:`service.runtime.modes.find_mode`.
            NotReadyError: the policy is expected and its checkpoint does not exist yet, or it is one of
                ``distil.policy`` and no checkpoint is served under its name now.
        """
        for asked in (name, policy):
            if asked in self.expected:
                raise NotReadyError(
                    f"policy {asked!r} is not available yet; it will be served once "
                    f"{self.expected[asked]} exists"
                )
            if asked in self.settings.distil.policies and asked not in self.policies:
                raise _no_checkpoint(asked)
        return find_mode(self.modes, self.policies, name, settings, policy)

    async def answer(self, request: PromptRequest) -> PromptResult:
        """Answer one prompt: check the mode's models, encode, wait for admission, decode, record.

        Raises:
            NotReadyError, OverloadedError, RequestTimeoutError, InvalidInputError, EngineError,
            RewardError: every call either returns a result or raises exactly one of these.
        """
        engine, reward = self.check_available(request.mode)
        scorer = None if reward is None else MeteredScorer(reward)
        # Taken before waiting, so that a reload meanwhile does not mix old and new engines.
        resources = Resources(engine, self.policies, scorer, self.embedder)
        limit_s, limit_name = self.settings.limits.time_limit(request.timeout_s)
        progress = begin_progress(request, scored=scorer is not None and request.wants_rewards)
        models = (engine, reward, *self._other_engines(request.mode))
        try:
            async with self.in_flight.track(limit_s, limit_name, models, request.spent_s):
                changes = len(engine.info.replaced)
                left_s = limit_s - request.spent_s
                with weights_noted() as used, one_reward_model() as kept:
                    request, outcome = await self._decode(request, resources, progress, left_s)
                drawn_by = used.get(id(engine), [engine.info])
                policy = drawn_by[-1]
        except RequestTimeoutError as error:
            scoring = scorer is not None and scorer.used
            error.decoding = progress.admitted_s is not None and not scoring
            error.own_limit = limit_name == "timeout_s"
            raise
        total_ms = (perf_counter() - progress.arrived_s) * 1e3
        note_outcome(progress, outcome)
        assert progress.admitted_s is not None  # set by _admit_and_decode
        result = PromptResult(
            mode=request.mode,
            sampling=request.sampling,
            policy=policy,
            scorer=reward,
            prompt_tokens=progress.prompt_tokens,
            num_samples=request.drawn,
            outcome=outcome,
            queue_ms=(progress.admitted_s - progress.arrived_s) * 1e3,
            scoring_ms=0.0 if scorer is None else scorer.busy_s * 1e3,
            total_ms=total_ms,
            reward_revision=None if scorer is None else kept.get(id(reward), scorer.revision),
            routing=request.routing,
            earlier_revisions=tuple(
                dict.fromkeys(
                    (*(one.revision for one in drawn_by[:-1]), *policy.replaced[changes:])
                )
            ),
        )
        self._record(request, result, progress.arrived_s)
        if self.collect is not None and request.collected_as is not None:
            self.collect(request, result)
        return result

    def check_loaded(self) -> None:
        """Check that the models are loaded.

        Raises:
            NotReadyError: they are still loading.
        """
        if not self._loaded:
            raise NotReadyError(self.status())

    def check_available(self, mode: Mode) -> tuple[Engine, ServedScorer | None]:
        """The engine and scorer that a mode uses now. Failures of models it does not need are ignored.

        Returns:
            The scorer is ``None`` if none is configured, or if it is dead and the mode can do without.

        Raises:
            NotReadyError: the models are still loading, or the mode's policy has just left.
            EngineDeadError: the mode's engine is dead.
            RewardDeadError: the mode needs the reward model, which is dead.
        """
        self.check_loaded()
        engine, reward = self.policies.get(mode.policy), self.reward
        if engine is None:
            raise _no_checkpoint(mode.policy)
        if not engine.alive:
            raise EngineDeadError(
                f"the engine of {mode.policy} has died: {engine.trouble or self.status()}"
            )
        if reward is None or reward.alive:
            return engine, reward
        if mode.strategy.needs_reward:
            raise RewardDeadError(f"mode {mode.name!r} needs the reward model: {self.status()}")
        return engine, None

    def _other_engines(self, mode: Mode) -> tuple[Engine, ...]:
        return tuple(self.policies.values()) if mode.strategy.uses_policies else ()

    async def _decode(
        self,
        asked: PromptRequest,
        resources: Resources,
        progress: PromptProgress,
        limit_s: float,
    ) -> tuple[PromptRequest, Outcome]:
        """The outcome, and the request with what its strategy used.

        If the engine dies before anything of the answer was sent, and is back in time, it is begun again.
        """
        begun_s = perf_counter()
        engines = [
            resources.engine,
            *(one for one in self._other_engines(asked.mode) if one.alive),
        ]

        def patience_s(error: VbonError) -> float:
            # One that is being started again is not ready.
            if isinstance(error, NotReadyError) and all(one.alive for one in engines):
                return 0.0
            # The second attempt may take as long as the first one.
            return self._patience_s(asked, error, limit_s - 2 * (perf_counter() - begun_s))

        try:
            request, task = await self._encode(asked, resources.engine, progress)
            outcome = await self._admit_and_decode(request, task, resources, progress, patience_s)
            return request, outcome
        except (EngineDeadError, NotReadyError) as error:
            if not await self._are_back(engines, patience_s(error)):
                raise
            told = error.log_text or error
            logger.warning("a request of mode %s is begun again: %s", asked.mode.name, told)
        self.metrics.begun_again.labels(asked.mode.name).inc()
        forget_weights()
        request, task = await self._encode(asked, resources.engine, progress)
        return request, await self._admit_and_decode(request, task, resources, progress)

    def _patience_s(self, request: PromptRequest, error: VbonError, left_s: float) -> float:
        """Seconds that a request may wait for its dead engine; none if it cannot be begun again."""
        seen = request.observer.has_tokens or request.observer.has_candidates
        # Mode auto has another route in the place of a single sample.
        elsewhere = request.routing is not None and not request.mode.strategy.reranks
        deadly = isinstance(error, EngineDeadError) and not error.again
        if deadly or seen or elsewhere or self.in_flight.closing:
            return 0.0
        return min(self.settings.restarts.wait_s, left_s)

    async def _are_back(self, engines: Sequence[Engine], wait_s: float) -> bool:
        """Wait until engines, of which one has died, all live; false if they will not, or not in time."""
        if wait_s <= 0:
            return False

        def may_come() -> bool:
            served = self.policies.values()
            left = any(not (one.alive or any(one is other for other in served)) for one in engines)
            return not left and not self.in_flight.closing

        try:
            async with asyncio.timeout(wait_s):
                await asyncio.sleep(_DEATH_KNOWN_S)
                while may_come() and not all(one.alive for one in engines):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            return False
        return may_come()

    async def _encode(
        self, request: PromptRequest, engine: Engine, progress: PromptProgress
    ) -> tuple[PromptRequest, Task]:
        """The task of a request, and the request with what its strategy will use.

        Long prompts and chats are encoded one at a time for each policy, in fair order between keys. A prompt
        that turns out to be unusable is charged to the key, so that nobody can send them without end.
        """
        prompt, cost = request.prompt, 0.0
        await self.admission.check_not_used_up()
        try:
            if engine.is_quick(prompt):
                token_ids = await engine.encode(prompt)
            else:
                async with self._encoding_of(request.mode.policy).enter(1, max_tokens=prompt.size):
                    begun_s = perf_counter()
                    try:
                        token_ids = await engine.encode(prompt)
                    finally:
                        cost = max(prompt.size, (perf_counter() - begun_s) * TOKENS_PER_ENCODING_S)
            if request.clip:
                sampling = clipped(engine.info, len(token_ids), request.sampling)
                request = replace(request, sampling=sampling)
            check_fits(engine.info, token_ids, request.sampling)
        except InvalidInputError as error:
            self.admission.charge(round(cost))
            if isinstance(error, PromptTooLongError):
                error.field = "messages" if prompt.messages else "prompt"
            raise
        request = request.fitted()
        progress.encoded_s, progress.prompt_tokens = perf_counter(), len(token_ids)
        progress.max_tokens = request.sampling.max_tokens
        task = Task(
            prompt,
            token_ids,
            request.sampling,
            request.num_samples,
            request.request_id,
            request.score,
            request.observer,
            request.answers,
        )
        return request, task

    def _encoding_of(self, policy: str) -> Admission:
        return self._encoding.setdefault(
            policy,
            Admission(
                running=1,
                waiting=WAITING_PROMPTS,
                charges=False,
                counted="long prompts",
                limit_name="of each policy's tokenizer",
            ),
        )

    async def _admit_and_decode(
        self,
        request: PromptRequest,
        task: Task,
        resources: Resources,
        progress: PromptProgress,
        patience_s: Callable[[VbonError], float] = lambda _: 0.0,
    ) -> Outcome:
        strategy, sampling = request.mode.strategy, request.sampling
        async with self.admission.enter(
            request.sequences,
            sampling.priority,
            max_tokens=sampling.max_tokens,
            candidates=strategy.most_candidates(request.drawn),
        ) as entry:
            progress.admitted_s = perf_counter()
            request.observer.admitted(
                Admitted(
                    progress.prompt_tokens,
                    resources.engine.info,
                    strategy.reranks,
                    strategy.most_candidates(request.drawn),
                )
            )
            try:
                outcome = await strategy.run(task, resources)
            except (EngineDeadError, NotReadyError) as error:
                if patience_s(error) > 0:
                    entry.spent(0)  # it is charged when it is begun again
                raise
            entry.spent(outcome.generated_tokens)
        return _with_answers(outcome, request)

    def _record(self, request: PromptRequest, result: PromptResult, arrived_s: float) -> None:
        mode = request.mode.name
        self.metrics.observe(
            mode,
            result.outcome,
            prompt_tokens=result.prompt_tokens,
            arrived_s=arrived_s,
            queue_ms=result.queue_ms,
            total_ms=result.total_ms,
        )
        if request.mode.strategy.needs_reward or (request.score and self.reward is not None):
            unscored = sum(scored.reward is None for scored in result.outcome.judged)
            self.metrics.unscored.labels(mode).inc(unscored)

    def count_error(self, mode: str, kind: str) -> None:
        """Count a failed request under its mode, or under ``unknown`` if the server has no such mode.

        Labels for arbitrary names would let a client create any number of series.
        """
        known = mode if mode in self.modes or mode == SCORE else "unknown"
        self.metrics.failed(known, kind)


def _no_checkpoint(policy: str) -> NotReadyError:
    return NotReadyError(
        f"no checkpoint is served as {policy!r} at present; ask for mode {AUTO!r}, which uses best-of-N "
        "until there is one"
    )


def _with_answers(outcome: Outcome, request: PromptRequest) -> Outcome:
    """The outcome with as many answers as the request asks for.

    Raises:
        CandidateCountError: the strategy ended with fewer whole candidates.
    """
    if request.mode.strategy.reranks and request.answers > 1:
        outcome = replace(outcome, returned=ranked(outcome, request.sampling)[: request.answers])
    if len(outcome.returned) != request.answers:
        raise CandidateCountError(expected=request.answers, received=len(outcome.returned))
    return outcome


def _tasks() -> float:
    return float(len(asyncio.all_tasks()))
