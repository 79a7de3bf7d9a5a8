"""Engines and a scorer on other servers that are slow, refuse, answer rubbish or half, or break off."""

from __future__ import annotations

import asyncio

from tests.faults.service import Service
from tests.faults.stage import Stage
from tests.faults.steady_load import must_answer
from tests.faults.tally import Tally
from tests.unit.openai_imitation import Server, imitation
from tests.unit.scorer_imitation import ENDLESS, WRONG, Scorer, scoring

PROMISE = (
    "Whatever a remote engine or scorer does, each request gets one result or one clear error, "
    "and once they are well again all is as before."
)
ENGINE_FAULTS = (
    "429", "500", "503", "hang", "html", "json-cut", "body-cut", "miscount", "no-choices", "two-choices",
    "no-logprobs", "null-logprob", "nan-logprob", "lost-id", "aborted", "unfinished", "short",
    "stream-error", "stream-garbage", "stream-ends", "stream-cut", "cut",
)  # fmt: skip
SCORER_FAULTS = (
    *WRONG, *ENDLESS, "few", "many", "nan", "null", "hang", "drop", "half", "gzip"
)  # fmt: skip

# Longer than idle connections to other servers are kept; they are closed when the next request is sent.
IDLE_S = 3.0


async def inject(stage: Stage) -> Tally:
    """One fault after the other, each under load, each followed by a request that must succeed."""
    tally = Tally()
    async with imitation() as engine, scoring() as scorer:
        flags = (
            "--policies", f"ref={engine.url}", "--policies", f"vbon={engine.url}", "--reward", scorer.url,
            "--engine.remote-timeout-s", "2.5", "--reward-timeout-s", "2.5",
            "--engine.remote-max-backoff-s", "0.5",
        )  # fmt: skip
        async with stage.serving(*flags, models=False) as service:
            await _connect(service, tally, "before any fault")
            before = await service.held()
            for fault in ENGINE_FAULTS:
                await _engine(service, engine, fault, stage.count(200, least=6), tally)
            for fault in SCORER_FAULTS:
                await _scorer(service, scorer, fault, stage.count(200, least=6), tally)
            await asyncio.sleep(IDLE_S)
            await _connect(service, tally, "after all faults")
            tally.left_over = await service.left_over(before)
    return tally


async def _connect(service: Service, tally: Tally, when: str) -> None:
    """One request of each policy and one of the scorer: one connection each, those idle too long closed."""
    await must_answer(service, "bon", tally, when)
    await must_answer(service, "vbon", tally, when)


async def _engine(service: Service, engine: Server, fault: str, count: int, tally: Tally) -> None:
    engine.seconds_per_token = 0.005
    engine.faults = set() if fault == "cut" else {fault}
    asks = [
        asyncio.create_task(service.ask(("bon", "vbon")[i % 2], logprobs=i % 3 == 0))
        for i in range(count)
    ]
    if fault == "cut":
        await asyncio.sleep(0.03)
        engine.cut()
    for response in await asyncio.gather(*asks):
        tally.add(response)
    engine.faults, engine.seconds_per_token = set(), 0.0
    await service.until_ready(30)
    await must_answer(service, "bon", tally, f"after {fault!r} of the engine")


async def _scorer(service: Service, scorer: Scorer, fault: str, count: int, tally: Tally) -> None:
    scorer.fault = fault
    for response in await asyncio.gather(*(service.ask("bon") for _ in range(count))):
        tally.add(response)
    scorer.fault = ""
    await must_answer(service, "bon", tally, f"after {fault!r} of the scorer")
