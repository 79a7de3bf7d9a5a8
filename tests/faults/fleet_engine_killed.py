"""``kill -9`` of an engine's process in a fleet of two real replicas, while one of them streams a sample."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any

import httpx
import psutil

from tests.faults.stage import Stage
from tests.faults.tally import Tally

NEEDS = ("ray",)
# It starts Ray and two engines that load everything anew: a minute and 4 GB.
IN_FULL_ONLY = True
PROMISE = (
    "A streamed sample whose engine is killed goes on at the other replica, the same at temperature 0 "
    "and with a seed; what nobody has seen is drawn again; and the engine is replaced."
)
STREAMS = (
    {"temperature": 0.0},
    {"seed": 7},
    {"temperature": 1.0},
)
START_S, TOKENS = 300.0, 100


async def inject(stage: Stage) -> Tally:
    """Kill the engine that streams, once for each kind of stream, beside requests of best-of-N."""
    tally = Tally()
    async with _fleet(stage) as (client, count):
        expected = {}
        for number, stream in enumerate(STREAMS):
            expected[number] = await _streamed(client, stream, tally, None)
        for number, stream in enumerate(STREAMS):
            await _until_replicas(count)
            reranked = [asyncio.create_task(_asked(client, tally)) for _ in range(4)]
            killed_s = perf_counter()
            answer = await _streamed(client, stream, tally, _kill_the_busy_engine)
            await asyncio.gather(*reranked)
            await _until_replicas(count)
            tally.recovered_s = max(tally.recovered_s or 0, perf_counter() - killed_s)
            if answer is None:
                continue
            before = expected[number]
            tally.notes.append(f"{stream}: {answer['details']}")
            if "continued" not in answer["details"]:
                tally.fail(f"{stream}: the engine that was killed did not draw the sample")
            elif stream != STREAMS[-1] and (before is None or answer["text"] != before["text"]):
                tally.fail(f"{stream}: another text than undisturbed")
            elif answer["usage"]["returned_tokens"] != TOKENS:
                tally.fail(f"{stream}: {answer['usage']}")
    return tally


@asynccontextmanager
async def _fleet(stage: Stage) -> AsyncGenerator[tuple[httpx.AsyncClient, Any], None]:
    import ray
    from ray import serve

    from service.bench.processes import free_port
    from service.fleet import FleetSettings, app

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        port = free_port()
        settings = FleetSettings(
            service={
                "policies": {"ref": str(stage.sandbox / "policy")},
                "reward": str(stage.sandbox / "reward"),
                "store": f"sqlite:///{stage.scratch}/fleet.db",
                "engine": {"enforce_eager": True, "args": {"kv_cache_memory_bytes": 2**26}},
            },
            front_ends={"cpus": 0.5},  # type: ignore[arg-type]
            policies={"ref": {"replicas": 2, "cpus": 0.5}},  # type: ignore[dict-item]
            reward={"cpus": 0.5},  # type: ignore[arg-type]
            start_timeout_s=START_S,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        await asyncio.to_thread(
            serve.run, app(settings.model_dump()), name="fault", route_prefix="/"
        )
        handle = serve.get_deployment_handle("Policy-ref", "fault")

        async def count() -> int:
            answers = await handle.broadcast("wire").results_async(return_exceptions=True)
            return sum(not isinstance(one, BaseException) for one in answers)

        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            async with asyncio.timeout(START_S):
                while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
                await _until_replicas(count)
            yield client, count
    finally:
        serve.shutdown()
        ray.shutdown()


async def _until_replicas(count: Any) -> None:
    async with asyncio.timeout(START_S):
        while len(_engines()) < 2 or await count() < 2:  # noqa: ASYNC110 -- other processes' doing
            await asyncio.sleep(0.2)
        await asyncio.sleep(1)  # the front end connects to it


def _engines() -> list[psutil.Process]:
    """The engines of this fleet alone: other processes of the machine may have some too."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "EngineCore" in " ".join(one.cmdline()) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def _kill_the_busy_engine(before: dict[int, float]) -> None:
    """Kill the engine that has computed most since the stream began."""
    engines = [one for one in _engines() if one.pid in before]
    max(engines, key=lambda one: _seconds(one) - before[one.pid]).send_signal(signal.SIGKILL)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _streamed(
    client: httpx.AsyncClient, changes: dict[str, Any], tally: Tally, kill: Any
) -> dict[str, Any] | None:
    body = {"prompt": "the film was", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    before = {one.pid: _seconds(one) for one in _engines()}
    last, killed = "", False
    tally.asked += 1
    async with client.stream("POST", "/generate?mode=ref", json=body | changes) as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data:"):
                continue
            last = line.removeprefix("data:")
            tokens = json.loads(last).get("num_tokens", 0)
            if kill is not None and not killed and tokens >= TOKENS // 3:
                kill(before)
                killed = True
    found: dict[str, Any] = json.loads(last)
    if "error" in found:
        tally.errors[found["error"]["type"]] += 1
        return None
    tally.answered += 1
    return found


async def _asked(client: httpx.AsyncClient, tally: Tally) -> None:
    body = {"prompt": "the film was", "n": 8, "max_tokens": 60, "ignore_eos": True}
    try:
        tally.add(await client.post("/generate?mode=bon", json=body))
    except httpx.HTTPError as error:
        tally.add(error)
