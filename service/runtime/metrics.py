"""Prometheus metrics, named to sit beside vLLM's: the same words under the prefix ``vbon:``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from service.runtime.supervisor import Supervision
from service.strategies import Outcome
from vbon.engine import Engine
from vbon.engine.metrics import labelled, merged

logger = logging.getLogger(__name__)

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
M = TypeVar("M", Counter, Histogram)
_REWARDS = (-20, -10, -5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 5, 10, 20)


class Metrics:
    """One registry per application, so that tests and reloads do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        mode = ("mode",)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"vbon:{name}", text, mode, buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = mode) -> Counter:
            return Counter(f"vbon:{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"vbon:{name}", text, labels, registry=self.registry)

        self.success = counter("request_success", "Prompts answered.")
        self.errors = counter("request_errors", "Requests failed, by error.", ("mode", "error"))
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of answered prompts.")
        self.generation_tokens = counter("generation_tokens", "Tokens decoded, discarded included.")
        self.returned_tokens = counter("returned_tokens", "Tokens of the answers returned.")
        self.candidates = counter("candidates", "Candidates decoded.")
        self.unscored = counter(
            "unscored_candidates", "Candidates the reward model could not score."
        )
        self.e2e = histogram("e2e_request_latency_seconds", "From admission request to answer.")
        self.queue = histogram("request_queue_time_seconds", "Waiting for admission.")
        self.decode = histogram("request_decode_time_seconds", "Until the last candidate finished.")
        self.rerank = histogram("request_rerank_time_seconds", "Scoring not hidden by decoding.")
        self.first_token = histogram(
            "time_to_first_token_seconds", "From admission request to first token, where streamed."
        )
        self.inter_token = histogram(
            "inter_token_latency_seconds", "Between steps of a streamed sample.", _STEPS
        )
        self.reward = histogram("reward", "Raw reward of the answer.", _REWARDS)
        self.running = gauge("num_sequences_running", "Candidates admitted.")
        self.waiting = gauge("num_sequences_waiting", "Candidates waiting for admission.")
        self.scores_waiting = gauge("num_scores_waiting", "Candidates waiting for their reward.")
        self.tasks = gauge("num_tasks", "Tasks on the event loop.")
        self.engine_alive = gauge(
            "engine_alive", "1 while the policy's engine takes requests.", ("policy",)
        )
        self.engine_sequences = gauge(
            "num_engine_sequences",
            "Sequences neither finished nor aborted in the policy's engine, an adapter's in its base's.",
            ("policy",),
        )
        self.restarts = counter(
            "restarts", "Times an engine or a reward model's worker was started again.", ("part",)
        )
        self.recovery = gauge("recovery_seconds", "How long it was away the last time.", ("part",))
        self.ready = gauge("ready", "1 when every model is loaded and warm.")

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
        """Record one answered prompt; ``arrived_s`` is on the clock of ``perf_counter``."""
        _of_mode(self.success, mode).inc()
        _of_mode(self.prompt_tokens, mode).inc(prompt_tokens)
        _of_mode(self.generation_tokens, mode).inc(outcome.generated_tokens)
        _of_mode(self.returned_tokens, mode).inc(outcome.returned_tokens)
        _of_mode(self.candidates, mode).inc(len(outcome.candidates))
        _of_mode(self.e2e, mode).observe(total_ms / 1e3)
        _of_mode(self.queue, mode).observe(queue_ms / 1e3)
        _of_mode(self.decode, mode).observe(outcome.decode_ms / 1e3)
        _of_mode(self.rerank, mode).observe(outcome.rerank_ms / 1e3)
        if outcome.selected.reward is not None:
            _of_mode(self.reward, mode).observe(outcome.selected.reward)

        if outcome.step_times_s:
            _of_mode(self.first_token, mode).observe(outcome.step_times_s[0] - arrived_s)
        for before, after in pairwise(outcome.step_times_s):
            _of_mode(self.inter_token, mode).observe(after - before)

    def recovered(self, watch: Supervision) -> None:
        """Record that a part is back."""
        self.restarts.labels(watch.name).inc()
        self.recovery.labels(watch.name).set(watch.recovery_s)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


@cache
def _of_mode(metric: M, mode: str) -> M:
    """A metric's child, which its own ``labels`` would look up under a lock every time."""
    return metric.labels(mode)


async def expose(metrics: Metrics, policies: Mapping[str, Engine]) -> bytes:
    """The text exposition; engines that have nothing to say, or fail to, are left out."""
    found = await asyncio.gather(*(_of_policy(*item) for item in policies.items()))
    engines = merged(family for families in found for family in families)
    return metrics.render() + generate_latest(_Collected(engines))


async def _of_policy(policy: str, engine: Engine) -> list[Metric]:
    try:
        return [labelled(family, {"policy": policy}) for family in await engine.metrics()]
    except Exception:  # one engine must not blind the eye on all the others
        logger.exception("the metrics of policy %s cannot be read", policy)
        return []


class _Collected:
    """Families that are there already, where the format's writer wants to collect them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
