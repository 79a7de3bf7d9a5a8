"""``/metrics``: the service's and the engines' metrics in one valid text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.parser import text_string_to_metric_families

from service.runtime.runtime import Runtime
from tests.unit.fakes import make_runtime, serving
from tests.unit.openai_imitation import imitation
from tests.unit.test_remote_engine import OPTIONS, until
from tests.unit.virtual_clock import virtually
from vbon.engine.fake import FakeEngine
from vbon.engine.metrics import stat_logger_type, vllm_families
from vbon.engine.remote.engine import RemoteEngine

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


clocked = virtually("service", "vbon", "tests.unit")


class StatLogger:
    """Builds its metrics as vLLM's logger does, from class attributes in the constructor."""

    _gauge_cls: Any = Gauge
    _counter_cls: Any = Counter
    _histogram_cls: Any = Histogram

    def __init__(self) -> None:
        labels = ["model_name", "engine"]
        self.running = self._gauge_cls(
            name="vllm:num_requests_running",
            documentation="Running.",
            labelnames=labels,
            multiprocess_mode="mostrecent",
        ).labels("m", "0")
        self.tokens = self._counter_cls(
            name="vllm:generation_tokens", documentation="Tokens.", labelnames=labels
        ).labels("m", "0")
        self.ttft = self._histogram_cls(
            name="vllm:time_to_first_token_seconds",
            documentation="TTFT.",
            labelnames=labels,
            buckets=[0.1, 1],
        ).labels("m", "0")


class Measured(FakeEngine):
    """A fake engine with metrics like vLLM's."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.registry = CollectorRegistry()
        self.stats = stat_logger_type(self.registry, StatLogger)()

    async def metrics(self) -> list[Metric]:
        return vllm_families(self.registry)


class Broken(FakeEngine):
    async def metrics(self) -> list[Metric]:
        raise RuntimeError("no")


def parsed(text: str) -> Samples:
    """Parse all samples; fails on a duplicate family or series, which Prometheus would reject."""
    found: Samples = {}
    names = []
    for family in text_string_to_metric_families(text):
        names.append(family.name)
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    assert len(names) == len(set(names))
    return found


def valued(samples: Samples, name: str, **labels: str) -> list[float]:
    return [
        value
        for (found, pairs), value in samples.items()
        if found == name and labels.items() <= dict(pairs).items()
    ]


async def scraped(client: httpx.AsyncClient) -> Samples:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return parsed(answer.text)


def registered() -> set[str]:
    """The vLLM metrics in the process's default registry; some if a test ran vLLM in this process."""
    return {family.name for family in REGISTRY.collect() if family.name.startswith("vllm:")}


@clocked
async def test_two_engines_of_a_process_each_under_their_policy() -> None:
    before = registered()
    ref, vbon = Measured("a"), Measured("b")
    ref.stats.tokens.inc(7)
    vbon.stats.tokens.inc(3)
    vbon.stats.ttft.observe(0.5)
    async with serving(make_runtime(engines={"ref": ref, "vbon": vbon})) as (_, client):
        samples = await scraped(client)
    assert valued(samples, "vllm:generation_tokens_total", policy="ref", engine="0") == [7]
    assert valued(samples, "vllm:generation_tokens_total", policy="vbon") == [3]
    name = "vllm:time_to_first_token_seconds_bucket"
    assert valued(samples, name, policy="vbon", le="0.1") == [0]
    assert valued(samples, name, policy="vbon", le="1.0") == [1]
    assert valued(samples, "vbon:engine_alive") == [1, 1]
    assert registered() == before, "an engine's metrics belong to its policy alone"


@clocked
async def test_an_engine_that_fails_or_died_hides_no_other() -> None:
    runtime = make_runtime(engines={"ref": Broken("a"), "vbon": Measured("b")})
    async with serving(runtime) as (_, client):
        await client.post("/generate?mode=ref", json={"prompt": "a"})
        await runtime.policies["ref"].stop()
        samples = await scraped(client)
    assert valued(samples, "vbon:engine_alive", policy="ref") == [0]
    assert valued(samples, "vbon:engine_alive", policy="vbon") == [1]
    assert valued(samples, "vbon:ready") == [0]
    assert valued(samples, "vllm:num_requests_running") == [0]
    assert valued(samples, "vbon:request_success_total", mode="ref") == [1]


TEXT = """\
# HELP vllm:generation_tokens_total Tokens.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="org/policy"} 5.0
vllm:generation_tokens_total{engine="0",model_name="other"} 9.0
# HELP vllm:kv_cache_usage_perc KV.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="org/policy"} 0.25
# HELP process_open_fds Files.
# TYPE process_open_fds gauge
process_open_fds 12.0
"""


@asynccontextmanager
async def over(runtime: Runtime) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with serving(runtime) as (_, client):
        await until(lambda: runtime.ready or runtime.failure)
        yield client


@clocked
async def test_remote_servers_are_read_once_for_many_scrapes() -> None:
    async with imitation(metrics_text=TEXT) as a, imitation(metrics_text=TEXT) as b:
        engine = RemoteEngine(f"{a.url},{b.url}", OPTIONS)
        runtime = make_runtime(engines={"ref": engine, "vbon": Measured("b")})  # type: ignore[dict-item]
        async with over(runtime) as client:
            found = await asyncio.gather(*(scraped(client) for _ in range(5)))
        assert (a.scrapes, b.scrapes) == (1, 1)
    for samples in found:
        name = "vllm:generation_tokens_total"
        assert valued(samples, name, policy="ref") == [5, 5]
        assert valued(samples, name, policy="ref", server=a.url, model_name="org/policy") == [5]
        assert valued(samples, name, policy="vbon") == [0]
        assert valued(samples, "vllm:kv_cache_usage_perc", server=b.url) == [0.25]
        assert not valued(samples, "process_open_fds")


@pytest.mark.parametrize("fault", ["silent", "nonsense", "missing", "off"])
@clocked
async def test_a_server_without_usable_metrics_is_left_out(fault: str) -> None:
    text = {"missing": None, "nonsense": 'vllm:x{a="b" 1 2 3 {{'}.get(fault, TEXT)
    options = replace(OPTIONS, metrics=fault != "off", metrics_timeout_s=0.2)
    async with imitation(metrics_text=text) as server:
        if fault == "silent":
            server.faults.add("silent-metrics")
        engine = RemoteEngine(server.url, options)
        runtime = make_runtime(engines={"ref": engine, "vbon": Measured("b")})  # type: ignore[dict-item]
        async with over(runtime) as client:
            begun = perf_counter()
            samples = await scraped(client)
            assert perf_counter() - begun < 5
        assert server.scrapes == (fault != "off")
    assert valued(samples, "vbon:engine_alive", policy="ref") == [1]
    assert not valued(samples, "vllm:generation_tokens_total", policy="ref")
    assert valued(samples, "vllm:generation_tokens_total", policy="vbon") == [0]
