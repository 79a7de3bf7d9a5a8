"""Mixed load: modes, sizes, streams, clients that leave, bad input, all at once and without a pause."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter

import httpx

from tests.faults.tools.wire import post, wire
from tests.fuzz.mutate import mutant
from tests.fuzz.verdict import may_be_400, wrong_with

CLIENTS = 12
BODY = {"prompt": "the film was", "max_tokens": 24}


@dataclass
class Load:
    """What was sent so far.

    Attributes:
        latencies: (seconds since the start, seconds until the answer, kind) of whole answers.
        kinds: requests by kind; refused: clear errors by status; wrong: what may not be.
    """

    url: str
    client: httpx.AsyncClient
    seed: int = 0
    begun_s: float = field(default_factory=perf_counter)
    latencies: list[tuple[float, float, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def go_on_for(self, seconds: float) -> None:
        """Until then; nothing is in flight afterwards."""
        until = perf_counter() + seconds
        await asyncio.gather(*(self._client(number, until) for number in range(CLIENTS)))

    async def _client(self, number: int, until: float) -> None:
        chance = random.Random(f"{self.seed}-{number}")
        kinds: dict[str, Callable[[random.Random], Awaitable[None]]] = {
            "answer": self._answer, "stream": self._stream, "leave": self._leave, "bad": self._bad,
        }  # fmt: skip
        while perf_counter() < until:
            kind = chance.choices(tuple(kinds), weights=(10, 4, 3, 3))[0]
            self.kinds[kind] += 1
            try:
                await kinds[kind](chance)
            except (httpx.HTTPError, OSError) as error:
                self.wrong.append(f"{kind}: no answer: {type(error).__name__}: {error}")

    async def _answer(self, chance: random.Random) -> None:
        mode, n = chance.choice((("ref", 1), ("vbon", 1), ("bon", 4), ("bon", 16)))
        begun = perf_counter()
        response = await self.client.post(f"/generate?mode={mode}", json=BODY | {"n": n})
        self._judge(response)
        if response.status_code == 200:
            now = perf_counter()
            self.latencies.append((now - self.begun_s, now - begun, f"{mode} N={n}"))

    async def _stream(self, chance: random.Random) -> None:
        target, more = chance.choice(
            (
                ("/generate?mode=ref", {}),
                ("/generate?mode=bon", {"n": 4}),
                ("/v1/completions", {"model": "bon", "best_of": 4}),
                ("/v1/completions", {"model": "ref", "logprobs": 0}),
            )
        )
        async with self.client.stream("POST", target, json=BODY | more | {"stream": True}) as told:
            text = "".join([piece async for piece in told.aiter_text()])
        if told.status_code == 200 and "event: answer" not in text and "[DONE]" not in text:
            self.wrong.append(f"a stream that just ends: {text[-200:]}")

    async def _leave(self, chance: random.Random) -> None:
        body = BODY | {"n": chance.choice((1, 16)), "stream": chance.random() < 0.5}
        async with wire(self.url) as connection:
            said = post("/generate?mode=bon", body)
            connection.send(said[: chance.choice((len(said), len(said), len(said) // 2))])
            await asyncio.sleep(chance.uniform(0, 0.2))
            connection.leave(reset=chance.random() < 0.5)

    async def _bad(self, chance: random.Random) -> None:
        sent = mutant(chance)
        headers = [(name, value.encode()) for name, value in sent.headers.items()]
        response = await self.client.post(sent.target, content=sent.content, headers=headers)
        self._judge(response, may_be_400(sent.headers))

    def _judge(self, response: httpx.Response, stated: frozenset[int] = frozenset()) -> None:
        if response.status_code != 200:
            self.refused[response.status_code] += 1
        if trouble := wrong_with(response, stated=stated):
            self.wrong.append(trouble[:500])
        with suppress(IndexError):
            del self.wrong[100:]
