"""Prometheus metrics, named as vLLM names its own, with the prefix ``vbon:``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from service.runtime.supervisor import Supervision
from service.strategies import Outcome
from vbon.engine import Engine
from vbon.engine.metrics import labelled, merged

logger = logging.getLogger(__name__)

_MODE = ("mode",)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
M = TypeVar("M", Counter, Histogram)
_REWARDS = (-20, -10, -5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 5, 10, 20)


class Metrics:
    """The service's metrics, in a registry of their own, so that several applications do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.success = self._counter("request_success", "Prompts answered.")
        self.errors = self._counter(
            "request_errors", "Failed requests, by error.", ("mode", "error")
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of answered prompts.")
        self.generation_tokens = self._counter(
            "generation_tokens", "Tokens decoded, including discarded candidates."
        )
        self.returned_tokens = self._counter("returned_tokens", "Tokens of the answers returned.")
        self.candidates = self._counter("candidates", "Candidates decoded.")
        self.continued = self._counter(
            "samples_continued",
            "Times that a streamed sample went on at another replica, after one had died.",
        )
        self.begun_again = self._counter(
            "requests_begun_again",
            "Prompts whose engine died before anything was sent, and that were begun again.",
        )
        self.unscored = self._counter(
            "unscored_candidates", "Candidates the reward model could not score."
        )
        self.e2e = self._histogram("e2e_request_latency_seconds", "Time from arrival to answer.")
        self.queue = self._histogram(
            "request_queue_time_seconds", "Time spent waiting for admission."
        )
        self.decode = self._histogram(
            "request_decode_time_seconds", "Time until the last candidate finished."
        )
        self.rerank = self._histogram(
            "request_rerank_time_seconds", "Scoring time after the last candidate was decoded."
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds",
            "Time from arrival to the first token, for streamed samples.",
        )
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Time between steps of a streamed sample.", _STEPS
        )
        self.reward = self._histogram("reward", "Raw reward of the answer.", _REWARDS)
        self.scored_texts = self._counter("scored_texts", "Texts scored by /v1/score.", ("model",))
        self.unscored_texts = self._counter(
            "unscored_texts", "Texts of /v1/score that the model could not score.", ("model",)
        )
        self.score_latency = Histogram(
            "vbon:score_request_latency_seconds",
            "Time from the arrival of a /v1/score request to its rewards.",
            ("model",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.running = self._gauge("num_sequences_running", "Candidates admitted.")
        self.waiting = self._gauge("num_sequences_waiting", "Candidates waiting for admission.")
        self.shares_limits = self._gauge(
            "limits_shared",
            "1 if the limits hold over all front ends, 0 while this one has a share.",
        )
        self.scores_waiting = self._gauge(
            "num_scores_waiting", "Candidates waiting for their reward."
        )
        self.tasks = self._gauge("num_tasks", "Tasks on the event loop.")
        self.engine_alive = self._gauge(
            "engine_alive", "1 if the policy's engine is alive.", ("policy",)
        )
        self.engine_sequences = self._gauge(
            "num_engine_sequences",
            "Unfinished sequences in the policy's engine; an adapter's count for its base model.",
            ("policy",),
        )
        self.restarts = self._counter(
            "restarts", "Restarts of an engine or of a reward model's worker.", ("part",)
        )
        self.recovery = self._gauge("recovery_seconds", "Duration of the last outage.", ("part",))
        self.ready = self._gauge("ready", "1 if every model is loaded and warmed up.")

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"vbon:{name}", text, _MODE, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = _MODE) -> Counter:
        return Counter(f"vbon:{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"vbon:{name}", text, labels, registry=self.registry)

    def observe(
        self,
        mode: str,
        outcome: Outcome,
        *,
        prompt_tokens: int,
        arrived_s: float,
        queue_ms: float,
        total_ms: float,
    ) -> None:
        """Record one answered prompt; ``arrived_s`` is its ``perf_counter`` time of arrival."""
        _series(self.success, mode).inc()
        _series(self.prompt_tokens, mode).inc(prompt_tokens)
        _series(self.generation_tokens, mode).inc(outcome.generated_tokens)
        _series(self.returned_tokens, mode).inc(outcome.returned_tokens)
        _series(self.candidates, mode).inc(len(outcome.candidates))
        _series(self.continued, mode).inc(outcome.continued)
        _series(self.e2e, mode).observe(total_ms / 1e3)
        _series(self.queue, mode).observe(queue_ms / 1e3)
        _series(self.decode, mode).observe(outcome.decode_ms / 1e3)
        _series(self.rerank, mode).observe(outcome.rerank_ms / 1e3)
        if outcome.selected.reward is not None:
            _series(self.reward, mode).observe(outcome.selected.reward)

        if outcome.step_times_s:
            _series(self.first_token, mode).observe(outcome.step_times_s[0] - arrived_s)
        for before, after in pairwise(outcome.step_times_s):
            _series(self.inter_token, mode).observe(after - before)

    def failed(self, mode: str, kind: str) -> None:
        """Record one failed request by its error's type."""
        _series(self.errors, mode, kind).inc()

    def scored(self, model: str, rewards: Sequence[float | None], total_s: float) -> None:
        """Record one answered request of ``/v1/score``."""
        unscored = sum(reward is None for reward in rewards)
        self.scored_texts.labels(model).inc(len(rewards) - unscored)
        self.unscored_texts.labels(model).inc(unscored)
        self.score_latency.labels(model).observe(total_s)

    def recovered(self, supervision: Supervision) -> None:
        """Record that a part was restarted."""
        self.restarts.labels(supervision.name).inc()
        self.recovery.labels(supervision.name).set(supervision.recovery_s)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


@cache
def _series(metric: M, *labels: str) -> M:
    """The metric's series for a mode, cached because ``labels`` takes a lock at every call."""
    return metric.labels(*labels)


# Reads the metrics of several processes; raises NotReadyError if they cannot be had.
AllMetrics = Callable[[], Awaitable[Iterable[Metric]]]


async def expose(
    metrics: Metrics, policies: Mapping[str, Engine], of_all: AllMetrics | None = None
) -> bytes:
    """The service's and the engines' metrics in text format; an engine that fails is left out.

    Args:
        of_all: the service's metrics, if it has several processes.

    Raises:
        NotReadyError: those of several processes cannot be had now.
    """
    found = await asyncio.gather(*(_engine_metrics(*item) for item in policies.items()))
    engines = merged(family for families in found for family in families)
    own = metrics.render() if of_all is None else generate_latest(_Collected(await of_all()))
    return own + generate_latest(_Collected(engines))


async def _engine_metrics(policy: str, engine: Engine) -> list[Metric]:
    try:
        return [labelled(family, {"policy": policy}) for family in await engine.metrics()]
    except Exception:  # one failing engine must not hide the metrics of all others
        logger.exception("could not read the metrics of policy %s", policy)
        return []


class _Collected:
    """Adapts existing metric families to the interface that ``generate_latest`` expects."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
