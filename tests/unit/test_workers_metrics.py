"""The metrics of several processes as those of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from service.wire import WireServer
from service.wire.hosted import MetricParts
from service.workers.pages import PAGES, MetricPages
from service.workers.places import Places
from service.workers.summed import counted, summed
from service.workers.worker import Reports
from tests.unit.fakes import make_runtime, serving


class Process:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter("vbon:answers", "x", ("mode",), registry=self.registry)
        self.times = Histogram("vbon:times", "x", buckets=(1, 5), registry=self.registry)
        self.running = Gauge("vbon:num_running", "x", registry=self.registry)
        self.ready = Gauge("vbon:ready", "x", registry=self.registry)
        self.price = Gauge("vbon_auto_price", "x", registry=self.registry)
        self.restarts = Counter("vbon:restarts", "x", ("part",), registry=self.registry)

    @property
    def page(self) -> list[Metric]:
        return list(self.registry.collect())


def values(page: list[Metric]) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in page
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def two() -> tuple[Process, Process]:
    one, other = Process(), Process()
    one.answers.labels("bon").inc(3)
    one.answers.labels("ref").inc(1)
    other.answers.labels("bon").inc(4)
    for process, seconds in ((one, 0.5), (one, 2.0), (other, 9.0)):
        process.times.observe(seconds)
    one.running.set(5)
    other.running.set(6)
    one.ready.set(1)
    one.price.set(0.2)
    other.price.set(0.7)
    return one, other


def test_each_family_has_the_value_of_all_processes() -> None:
    one, other = two()
    found = values(summed([one.page, other.page]))
    assert found["vbon:answers_total", "bon"] == 7
    assert found["vbon:answers_total", "ref"] == 1
    buckets = {edge: found["vbon:times_bucket", edge] for edge in ("1.0", "5.0", "+Inf")}
    assert buckets == {"1.0": 1, "5.0": 2, "+Inf": 3}
    assert (found["vbon:times_sum", ""], found["vbon:times_count", ""]) == (11.5, 3)
    assert found["vbon:num_running", ""] == 11
    assert found["vbon:ready", ""] == 0  # of the other one, which is not ready
    assert found["vbon_auto_price", ""] == 0.7


def test_the_sum_of_one_page_is_that_page() -> None:
    one, _ = two()

    class Collected(CollectorRegistry):
        def collect(self) -> list[Metric]:
            return summed([one.page])

    assert generate_latest(Collected()) == generate_latest(one.registry)


def test_only_counts_outlast_a_process() -> None:
    one, _ = two()
    assert {family.name for family in counted(one.page)} == {
        "vbon:answers",
        "vbon:times",
        "vbon:restarts",
    }


async def test_a_worker_that_ends_keeps_its_counts_and_loses_its_gauges() -> None:
    parent, (one, other) = Process(), two()
    parent.restarts.labels("ref").inc(2)
    one.restarts.labels("ref").inc(9)  # of no part that a worker restarts
    pages = MetricPages(parent.registry)

    async def work(name: str, process: Process) -> None:
        async with aclosing(pages.wanted(name)) as numbers:
            async for number in numbers:
                parts = [MetricParts.of(family) for family in process.page]
                await pages.report(name, number, parts)

    async def found() -> dict[tuple[str, str], float]:
        return values([parts.metric for parts in await pages.sum()])

    working = [
        asyncio.create_task(work(name, process))
        for name, process in (("one", one), ("other", other))
    ]
    await asyncio.sleep(0)
    before = await found()
    assert before["vbon:answers_total", "bon"] == 7
    assert before["vbon:restarts_total", "ref"] == 2
    one.answers.labels("bon").inc()
    assert (await found())["vbon:answers_total", "bon"] == 8  # as of now
    working[0].cancel()
    await asyncio.gather(working[0], return_exceptions=True)
    after = await found()
    assert after["vbon:answers_total", "bon"] == 8
    assert after["vbon:num_running", ""] == 6
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)


@pytest.mark.parametrize("noticed_first_by", ["parent", "worker"])
async def test_a_worker_that_connects_again_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, noticed_first_by: str
) -> None:
    monkeypatch.setattr("service.workers.pages.PATIENCE_S", 0.05)
    one = Process()
    one.answers.labels("bon").inc(3)
    pages = MetricPages(Process().registry)

    async def report(number: int) -> None:
        await pages.report("one", number, [MetricParts.of(family) for family in one.page])

    async def answers() -> float:
        asked = asyncio.create_task(pages.sum())
        await report(await anext(numbers))
        return values([parts.metric for parts in await asked])["vbon:answers_total", "bon"]

    first = numbers = pages.wanted("one")
    await report(await anext(first))
    if noticed_first_by == "parent":
        await first.aclose()
        numbers = pages.wanted("one")
        await anext(numbers)
    else:
        numbers = pages.wanted("one")
        await anext(numbers)
        await first.aclose()
    between = values([parts.metric for parts in await pages.sum()])
    assert between["vbon:answers_total", "bon"] == 3
    one.answers.labels("bon").inc()
    assert await answers() == 4
    await numbers.aclose()
    ended = values([parts.metric for parts in await pages.sum()])
    assert ended["vbon:answers_total", "bon"] == 4


async def test_many_workers_that_end_are_all_counted() -> None:
    pages = MetricPages(Process().registry)
    for number in range(150):
        process = Process()
        process.answers.labels("bon").inc()
        async with aclosing(pages.wanted(f"worker {number}")) as numbers:
            page = [MetricParts.of(family) for family in process.page]
            await pages.report(f"worker {number}", await anext(numbers), page)
    found = values([parts.metric for parts in await pages.sum()])
    assert found["vbon:answers_total", "bon"] == 150


async def test_a_silent_worker_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.workers.pages.PATIENCE_S", 0.01)
    parent = Process()
    pages = MetricPages(parent.registry)
    async with aclosing(pages.wanted("hangs")) as numbers:
        await anext(numbers)
        found = await asyncio.wait_for(pages.sum(), 60)
        assert [(parts.name, parts.samples) for parts in found] == [("vbon:restarts", [])]


async def test_without_the_parent_the_metrics_are_refused(tmp_path: Path) -> None:
    """A page of one worker alone would look as if all counters had been set back."""
    runtime = make_runtime()
    runtime.all_metrics = Reports(runtime, Places(str(tmp_path), "word")).sum
    async with serving(runtime) as (_, client):
        answer = await client.get("/metrics")
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "not_ready"
    assert "other workers" in answer.json()["error"]["message"]


async def test_a_report_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.workers.worker._AGAIN_S", 0.01)
    runtime, places = make_runtime(), Places(str(tmp_path), "word")
    runtime.metrics.scored_texts.labels("reward").inc(3)
    collect, failures = runtime.metrics.registry.collect, [RuntimeError("changed meanwhile")]

    def failing() -> Iterable[Metric]:
        if failures:
            raise failures.pop()
        return collect()

    monkeypatch.setattr(runtime.metrics.registry, "collect", failing)
    pages = MetricPages(Process().registry)
    server = WireServer(places.metrics.url, pages, PAGES, secret=places.secret)
    await server.start()
    reports = Reports(runtime, places)
    reports.start()

    async def counted_there() -> float | None:
        found = values([parts.metric for parts in await pages.sum()])
        return found.get(("vbon:scored_texts_total", "reward"))

    try:
        async with asyncio.timeout(60):
            while await counted_there() != 3:  # noqa: ASYNC110  (another side's state)
                await asyncio.sleep(0.01)
    finally:
        await reports.stop()
        await server.stop()
