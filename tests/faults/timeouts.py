"""Time limits too short at random, so that requests end while they wait, decode or are scored."""

from __future__ import annotations

import asyncio
import random

import httpx

from tests.faults.service import Service
from tests.faults.stage import Stage
from tests.faults.tally import Tally

PROMISE = "A request past its time limit ends as 504, an answer or nothing in between, and leaves nothing."
AT_ONCE = 24


async def inject(stage: Stage) -> Tally:
    """Limits from a millisecond to a second, in all modes, streamed and not."""
    service = await stage.service()
    for mode in ("ref", "bon"):
        await service.ask(mode)
    before = await service.held()
    tally = Tally()
    chance = random.Random(0)
    todo = iter(range(stage.count(5000, least=200)))

    async def ask_on() -> None:
        for _ in todo:
            await _ask(service, chance, tally)

    await asyncio.gather(*(ask_on() for _ in range(AT_ONCE)))
    tally.add(await service.ask("bon"))
    if not tally.errors["timeout"] or not tally.answered:
        tally.asked += 1
        tally.lost.append(f"all ended alike: {tally.answered} answered, {dict(tally.errors)}")
    tally.left_over = await service.left_over(before)
    return tally


async def _ask(service: Service, chance: random.Random, tally: Tally) -> None:
    changes = {
        "n": chance.choice((1, 4, 16)),
        "max_tokens": chance.choice((4, 48)),
        "timeout_s": 10 ** chance.uniform(-3, 0.5),
    }
    mode = chance.choice(("ref", "vbon", "bon"))
    if chance.random() < 0.7:
        tally.add(await service.ask(mode, **changes))
        return
    response = await service.ask(mode, stream=True, **changes)
    if isinstance(response, Exception) or response.status_code != 200:
        tally.add(response)
        return
    _add_stream(response, tally)


def _add_stream(response: httpx.Response, tally: Tally) -> None:
    """One that began ends with exactly one answer or one error."""
    tally.asked += 1
    names = [
        block.partition("\n")[0] for block in response.text.split("\n\n") if block[:5] == "event"
    ]
    ends = [name for name in names if name in {"event: answer", "event: error"}]
    if len(ends) != 1 or names[-1] not in {ends[0], "event: progress"}:
        tally.lost.append(f"a stream that ends with {names[-3:]}")
    elif ends == ["event: answer"]:
        tally.answered += 1
    else:
        kind = response.text.rpartition('"type":')[2].split('"')[1]
        tally.errors[kind] += 1
