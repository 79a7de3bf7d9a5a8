"""The same seed asked again: alone and in company, another N, another mode, streamed, after a restart."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable
from typing import Any

from tests.faults.service import Service
from tests.faults.stage import Stage
from tests.faults.tally import Tally

PROMISE = (
    "The same seed gives the same candidates, of any N and mode, streamed or not, after a restart; "
    "in company too, but for floating-point sums."
)
PROMPTS = ("the film was", "i watched this", "a dull story", "the actors were")
SETTINGS: dict[str, Any] = {"max_tokens": 24, "return_candidates": True, "logprobs": True}
COMPANY = 64
Candidates = list[list[int]]
Likeness = Counter[bool]


async def inject(stage: Stage) -> Tally:
    """Ask for a number of seeds in each of these ways; those alone must agree, all are counted."""
    tally = Tally()
    seeds = range(stage.count(100, least=6))
    service = await stage.service()
    alone = {seed: await _candidates(service, seed, tally) for seed in seeds}
    found: dict[str, Likeness] = {
        "again": await _compared(alone, lambda s: _candidates(service, s, tally)),
        "N = 16": await _compared(alone, lambda s: _candidates(service, s, tally, n=16)),
        "mode ref": await _compared(alone, lambda s: _candidates(service, s, tally, mode="ref")),
        "streamed": await _compared(alone, lambda s: _streamed(service, s, tally)),
        "/v1": await _compared(alone, lambda s: _through_v1(service, s, tally)),
    }
    company = asyncio.create_task(_keep_company(service, tally))
    await asyncio.sleep(0.5)
    found[f"among {COMPANY} others"] = await _compared(
        alone, lambda s: _candidates(service, s, tally)
    )
    company.cancel()
    await asyncio.gather(company, return_exceptions=True)
    other = await stage.second_service()
    found["restarted"] = await _compared(alone, lambda s: _candidates(other, s, tally))
    for way, likeness in found.items():
        tally.notes.append(f"{way}: {likeness[True]} equal, {likeness[False]} not")
        if likeness[False] and "others" not in way:
            tally.asked += 1
            tally.lost.append(f"{way}: {likeness[False]} of {likeness.total()} candidates differ")
    return tally


async def _compared(alone: dict[int, Candidates], asked: Any) -> Likeness:
    """Counts of the candidates drawn both ways that are equal, token for token, and of those that are not."""
    likeness: Likeness = Counter()
    for seed, expected in alone.items():
        got: Candidates = await asked(seed)
        likeness.update(one == other for one, other in zip(expected, got, strict=False))
    return likeness


def _body(seed: int) -> dict[str, Any]:
    return SETTINGS | {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed * 7_919}


async def _candidates(
    service: Service, seed: int, tally: Tally, *, n: int = 4, mode: str = "bon"
) -> Candidates:
    answer = await _told(
        service.client.post(f"/generate?mode={mode}", json=_body(seed) | {"n": n}), tally
    )
    return [one["token_ids"] for one in sorted(answer["candidates"], key=lambda one: one["index"])]


async def _streamed(service: Service, seed: int, tally: Tally) -> Candidates:
    """The streamed answer of a mode of one sample, whose tokens come one by one."""
    body = _body(seed) | {"stream": True}
    response = await service.client.post("/generate?mode=ref", json=body)
    tally.asked += 1
    tally.answered += 1
    (told,) = [block for block in response.text.split("\n\n") if block.startswith("event: answer")]
    return [json.loads(told.partition("data: ")[2])["token_ids"]]


async def _through_v1(service: Service, seed: int, tally: Tally) -> Candidates:
    body = _body(seed) | {"model": "bon", "best_of": 4, "logprobs": 0}
    answer = await _told(service.client.post("/v1/completions", json=body), tally)
    told = answer["vbon"]["candidates"]
    return [one["token_ids"] for one in sorted(told, key=lambda one: one["index"])]


async def _told(asking: Awaitable[Any], tally: Tally) -> Any:
    response = await asking
    tally.add(response)
    return response.raise_for_status().json()


async def _keep_company(service: Service, tally: Tally) -> None:
    """Requests that come and go beside the one looked at, all of them unlike."""

    async def ask_on(number: int) -> None:
        while True:
            response = await service.ask(
                "ref", n=1, max_tokens=8 + number % 40, prompt=f"x{number}"
            )
            tally.add(response)

    await asyncio.gather(*(ask_on(number) for number in range(COMPANY)))
