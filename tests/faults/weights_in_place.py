"""Weights change in a running engine while requests never stop; then a file is cut while it is loaded."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx

from tests.faults.service import Service
from tests.faults.stage import Stage
from tests.faults.steady_load import steady_load
from tests.faults.tally import Tally

PROMISE = (
    "A change of weights in place fails no request; after a load that fails half-way, answers are those of "
    "before."
)
WEIGHTS = "model.safetensors"
# Seconds for the check of the files, which takes milliseconds on a machine that is not busy.
CHECK_S = 4.0
DECIDED_BY_WEIGHTS = ("text", "token_ids", "token_logprobs", "policy")


async def inject(stage: Stage) -> Tally:
    """Change to other weights and back under load, in both ways; then cut the file during a load."""
    tally = Tally()
    service = await stage.second_service()
    engines = [engine.pid for engine in service.children("EngineCore")]
    (stage.served / "checksums.json").unlink(missing_ok=True)
    for weights, in_flight in (("policy", "finish"), ("vbon", "keep"), ("policy", "finish")):
        shutil.copyfile(stage.sandbox / weights / WEIGHTS, stage.served / WEIGHTS)
        async with steady_load(service, tally, width=stage.count(8, least=2)):
            changed = await _reload(service, in_flight)
        if changed.status_code != 200:
            tally.fail(f"change to {weights}: {changed.status_code} {changed.text[:300]}")
            return tally
        told = changed.json()
        tally.notes.append(f"{in_flight} {told['drain_s']:.1f} s")
        answer = await _answer(service, tally)
        if answer["policy"]["revision"] != told["now"] or told["now"] == told["before"]:
            tally.fail(f"{told} was answered by {answer['policy']}")
    if tally.errors:
        tally.fail(f"requests failed: {dict(tally.errors)}")
    before = await _answer(service, tally)
    await _cut_during_load(service, stage, tally)
    after = await _answer(service, tally)
    if before != after:
        tally.fail(f"after a load that failed: {after} instead of {before}")
    if engines != [engine.pid for engine in service.children("EngineCore")]:
        tally.fail("an engine was started anew")
    return tally


async def _reload(service: Service, in_flight: str) -> httpx.Response:
    body = {"model": "vbon", "in_place": True, "in_flight": in_flight, "limit_s": 60}
    return await service.client.post("/admin/reload", json=body, timeout=300)


async def _cut_during_load(service: Service, stage: Stage, tally: Tally) -> None:
    """Stop the engines before they load, so that the file is cut between its check and the load."""
    shutil.copyfile(stage.sandbox / "vbon" / WEIGHTS, stage.served / WEIGHTS)
    stopped = service.children("EngineCore")
    for engine in stopped:
        engine.send_signal(signal.SIGSTOP)
    reloading = asyncio.create_task(_reload(service, "finish"))
    await asyncio.sleep(CHECK_S)
    _cut(stage.served / WEIGHTS)
    for engine in stopped:
        engine.send_signal(signal.SIGCONT)
    refused = await reloading
    if refused.status_code != 422 or "cannot load the weights" not in refused.text:
        tally.fail(f"a file that was cut: {refused.status_code} {refused.text[:300]}")


async def _answer(service: Service, tally: Tally) -> dict[str, Any]:
    response = await service.ask("vbon", max_tokens=24, seed=5, n=1, logprobs=True)
    tally.add(response)
    if isinstance(response, Exception) or response.status_code != 200:
        tally.fail(f"no answer: {response}")
        return {"policy": {"revision": ""}}
    return {name: response.json()[name] for name in DECIDED_BY_WEIGHTS}


def _cut(weights: Path) -> None:
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
