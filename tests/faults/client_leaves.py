"""Clients that go away: at random moments, at every stage of a request, politely or by a reset."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress

import httpx

from tests.faults.service import BODY, ENGINE_FLAGS, Service
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.faults.tools.wire import Wire, post, wire

PROMISE = "A client may leave at any moment: its work stops, nothing of it is left, and nobody else notices."
LEAVING_AT_ONCE = 20
STAGES = ("head", "half body", "at once", "any moment", "any moment", "streaming", "streaming /v1")


async def inject(stage: Stage) -> Tally:
    """Leave the shared service at every stage, and one with a slow scorer while it reranks."""
    tally = Tally()
    await _leave_often(await stage.service(), stage.count(5000), tally)
    slow = stage.serving(*ENGINE_FLAGS, "--policies", f"ref={stage.sandbox / 'policy'}",
        "--reward", "python:tests.faults.tools.scorers:slow", models=False,
    )  # fmt: skip
    async with slow as service:
        await _leave_often(service, stage.count(1000), tally, stages=("reranking", "any moment"))
    return tally


async def _leave_often(
    service: Service, times: int, tally: Tally, stages: tuple[str, ...] = STAGES
) -> None:
    for mode in ("ref", "bon"):
        await service.ask(mode)
    before = await service.held()
    left_before = await service.metric("vbon:request_errors_total", error="client_disconnected")
    seen: Counter[str] = Counter()
    moments = random.Random(0)
    todo = iter(range(times))
    done = asyncio.Event()

    async def leave_and_come_back() -> None:
        for _ in todo:
            kind = moments.choice(stages)
            seen[kind] += 1
            await _leave(service, kind, moments)
            tally.asked += 1
            tally.left += 1

    async with asyncio.TaskGroup() as group:  # if one fails, none goes on into the next fault
        group.create_task(_others(service, done, tally))
        leaving = [group.create_task(leave_and_come_back()) for _ in range(LEAVING_AT_ONCE)]
        await asyncio.gather(*leaving)
        done.set()
    for what, count in (await service.left_over(before)).items():
        tally.left_over[what] = tally.left_over.get(what, 0) + count
    noticed = await service.metric("vbon:request_errors_total", error="client_disconnected")
    tally.notes.append(f"left: {dict(seen)}; the server stopped work of {noticed - left_before:g}")
    if noticed == left_before:
        tally.lost.append("the server noticed nobody leaving while it worked")


async def _others(service: Service, done: asyncio.Event, tally: Tally) -> None:
    """A client that stays, to be served as if it were alone."""
    while not done.is_set():
        response = await service.ask("bon")
        tally.add(response)
        if isinstance(response, httpx.Response) and response.status_code != 200:
            tally.lost.append(f"one that stayed was told {response.text[:120]}")
            tally.asked += 1


async def _leave(service: Service, kind: str, moments: random.Random) -> None:
    async with wire(service.url) as connection:
        await _go_on_until_leaving(connection, kind, moments)
        connection.leave(reset=moments.random() < 0.5)


async def _go_on_until_leaving(connection: Wire, kind: str, moments: random.Random) -> None:
    n = moments.choice((1, 4, 16, 64))  # 20 of these are more than run at once, so some wait
    body = BODY | {"n": n, "max_tokens": moments.choice((12, 48))}
    mode = moments.choice(("bon", "ref")) if kind != "reranking" else "bon"
    if kind == "head":
        connection.send(post("/generate", b"", length=100))
    elif kind == "half body":
        connection.send(post("/generate", b'{"prompt": "the fi', length=100))
        await asyncio.sleep(moments.uniform(0, 0.02))
    elif kind.startswith("streaming"):
        target, told = f"/generate?mode={mode}", {"stream": True}
        if kind == "streaming /v1":
            target = "/v1/completions"
            body = {"model": mode, "prompt": "the film was", "best_of": n, "max_tokens": 48}
        # Closed by the server after a short answer, which the reads below would else wait for in vain.
        connection.send(post(target, body | told, "connection: close"))
        with suppress(ConnectionError):
            for _ in range(moments.randrange(1, 4)):
                await asyncio.wait_for(connection.reader.read(moments.randrange(1, 2000)), 60)
    else:
        connection.send(post(f"/generate?mode={mode}", body))
        longest_s = {"at once": 0.0, "any moment": 0.5, "reranking": 0.6}[kind]
        await asyncio.sleep(moments.uniform(0.1 if kind == "reranking" else 0, longest_s))
