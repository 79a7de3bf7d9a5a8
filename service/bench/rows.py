"""The rows of the table, one function each; :data:`ROWS` is the registry."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from math import exp, log
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import httpx

from service.bench.client import client
from service.bench.figures import Figure, Measure, in_turns, ratios, with_unit
from service.bench.harness import Bench
from service.bench.peers.row import peers
from service.bench.single import single
from service.bench.token_need import token_need
from service.bench.workers import workers
from service.distil.collector import Collector
from service.runtime.prompt import AnswerSink
from service.settings import DistilSettings
from vbon.maths.statistics import bootstrap_mean, median_range

Row = Callable[[Bench], Awaitable[Figure | list[Figure]]]


async def _compared(
    bench: Bench, name: str, goal: float, unit: str, first: Measure, second: Measure
) -> Figure:
    """Measure two sides alternately; the figure is the ratio of the first over the second."""
    a, b = await in_turns(bench.settings.pairs, first, second)
    detail = f"{with_unit(a, unit)} against {with_unit(b, unit)}"
    return Figure(name, ratios(a, b), goal, True, detail)


async def http(bench: Bench) -> Figure:
    """Tokens a second of ``ref`` over HTTP, saturated, over those of ``AsyncLLM.generate`` alone."""
    settings = bench.settings
    width = bench.width(1)

    async def ours() -> float:
        found = await bench.over_http("ref", settings.requests, width, score=False)
        return found.tokens_per_second

    async def theirs() -> float:
        tokens, seconds = await bench.bare(settings.requests, width, n=1)
        return tokens / seconds

    name = "ref over HTTP / bare engine, tokens/s"
    return await _compared(bench, name, 0.95, "tokens/s", ours, theirs)


async def bon(bench: Bench) -> Figure:
    """Tokens a second of ``bon``, saturated, over those of bare generation of n samples without rewards."""
    settings = bench.settings
    width = bench.width(settings.n)

    async def ours() -> float:
        return (await bench.over_http("bon", settings.bon_requests, width)).tokens_per_second

    async def theirs() -> float:
        tokens, seconds = await bench.bare(settings.bon_requests, width, n=settings.n)
        return tokens / seconds

    name = f"bon / bare n={settings.n} without reward, tokens/s"
    return await _compared(bench, name, 0.92, "tokens/s", ours, theirs)


async def overlap(bench: Bench) -> Figure:
    """Share of the time in which candidates waited for scores or were scored that decoding hid."""
    settings = bench.settings
    width = bench.width(settings.n)
    shares = []
    for _ in range(settings.pairs):
        found = await bench.over_http("bon", settings.bon_requests, width)
        shares.append(1 - sum(found.rerank_ms) / sum(found.scoring_ms))
    name = f"scoring hidden behind decoding, n={settings.n}"
    return Figure(name, median_range(shares), 0.8, True, f"{width} requests in flight")


async def vbon(bench: Bench) -> Figure:
    """Requests answered a second by ``vbon`` over those by ``bon``, both saturated."""
    settings = bench.settings
    width = bench.width(1)

    async def single() -> float:
        found = await bench.over_http("vbon", settings.requests, width, score=False)
        return found.requests_per_second

    async def best_of() -> float:
        found = await bench.over_http("bon", settings.bon_requests, bench.width(settings.n))
        return found.requests_per_second

    name = f"vbon / bon at n={settings.n}, requests/s"
    return await _compared(bench, name, 14, "requests/s", single, best_of)


async def abort(bench: Bench) -> Figure:
    """Sequences still in the engine 0.1 s after a client disconnects, 0.2 s into its request."""
    settings = bench.settings
    left: list[float] = []
    scored = bench.runtime.reward
    room = bench.engine.info.max_model_len - 64
    for _ in range(settings.pairs):
        body = {"prompt": "the", "n": settings.n, "max_tokens": min(room, 512), "stop": "@never@"}
        async with httpx.AsyncClient(timeout=0.2) as client:
            try:
                await client.post(f"{bench.url}/generate?mode=bon", json=body)
            except httpx.TimeoutException:
                await asyncio.sleep(0.1)
                left.append(float(bench.engine.unfinished))
    waiting = 0 if scored is None else scored.waiting
    detail = (
        f"{len(left)} of {settings.pairs} requests ran when the client left; {waiting} scores wait"
    )
    return Figure(
        "sequences left after a disconnect", median_range(left or [0.0]), 0, False, detail
    )


async def memory(bench: Bench) -> Figure:
    """Memory of this process after all requests, over its memory after the first tenth of them."""
    settings = bench.settings
    tenth = settings.memory_requests // 10
    sizes = []
    begun = perf_counter()
    for _ in range(10):
        await bench.over_http("vbon", tenth, bench.width(1), max_tokens=8, score=True)
        sizes.append(resident_mib())
    detail = (
        f"{sizes[0]:.0f} MiB after {tenth} requests, {sizes[-1]:.0f} after "
        f"{settings.memory_requests} in {perf_counter() - begun:.0f} s"
    )
    growth = median_range([sizes[-1] / sizes[0]])
    return Figure("memory after all requests / after a tenth", growth, 1.05, False, detail)


def resident_mib() -> float:
    """Resident memory of this process in MiB (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as handle:
        return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def collecting(bench: Bench) -> Figure:
    """Tokens a second of ``bon`` while answers are collected for training, over those without."""
    settings, runtime = bench.settings, bench.runtime
    width = bench.width(settings.n)
    before = runtime.collect
    with TemporaryDirectory(prefix="collected-") as folder:
        collector = Collector(DistilSettings(dir=folder))
        collector.start()

        cpu_ms: dict[bool, list[float]] = {True: [], False: []}

        async def measured(sink: AnswerSink | None) -> float:
            runtime.collect, begun_s = sink, process_time()
            found = await bench.over_http("bon", settings.bon_requests, width)
            spent_ms = (process_time() - begun_s) * 1e3 / settings.bon_requests
            cpu_ms[sink is not None].append(spent_ms)
            return found.tokens_per_second

        try:
            a, b = await in_turns(
                settings.pairs, lambda: measured(collector.offer), lambda: measured(None)
            )
            kept = (await collector.summary()).lines
        finally:
            runtime.collect = before
            await collector.stop()
    ratio = bootstrap_mean([log(above / below) for above, below in zip(a, b, strict=True)])
    # The first ones are the warm-up's.
    pairs = zip(cpu_ms[True][1:], cpu_ms[False][1:], strict=True)
    added = bootstrap_mean([above - below for above, below in pairs])
    detail = (
        f"{with_unit(a, 'tokens/s')} against {with_unit(b, 'tokens/s')}; geometric mean of the ratios "
        f"{exp(ratio.mean):.3f} [{exp(ratio.low):.3f}, {exp(ratio.high):.3f}]; CPU time of the front end "
        f"{with_unit(cpu_ms[False][1:], 'ms')} an answer, {added.mean:.3f} [{added.low:.3f}, "
        f"{added.high:.3f}] more with collection; {kept} answers kept"
    )
    return Figure("bon collected / not collected, tokens/s", ratios(a, b), 0.98, True, detail)


ROWS: dict[str, Row] = {
    "http": http,
    "bon": bon,
    "overlap": overlap,
    "vbon": vbon,
    "abort": abort,
    "memory": memory,
    "collecting": collecting,
    "strategies": token_need,
    "workers": workers,
    "client": client,
    "single": single,
    "peers": peers,
}
