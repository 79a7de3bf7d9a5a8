"""Latency of admitted requests at ten times the load, on a service set for latency, beside three controls."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import numpy as np
import psutil

from tests.faults.service import BODY, ROOT, Service
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.faults.tools import offered_load
from tests.faults.tools.offered_load import Offered, Plan
from tests.faults.tools.wire import post

PROMISE = (
    "Where running_sequences is what the engine decodes without slowing and waiting_sequences a quarter, "
    "the p99 of the admitted stays within twice the unloaded one at ten times the load."
)
IN_FULL_ONLY = True  # a measurement; `overload` counts what becomes of requests
WIDTHS = (2, 4, 8, 16)
# An answer's time at full width over its time alone. With a quarter as many waiting it takes 1.25 times as
# long again, and 1.25 times once more where clients and refusals take time of the engine's cores.
SLOWER = 1.28
OVERLOAD = 10
ROUNDS = 5
CHANGES = {"n": 1, "max_tokens": 24, "ignore_eos": True}
REQUEST = post("/generate?mode=bon", BODY | CHANGES, "connection: close").decode()

# What is measured in each round. The surplus is what ten times the load is more than the service answers;
# `beside` sends it, by the same client, to a responder that costs as little as a server can.
SIDES = {
    "alone": "one request at a time",
    "alone, surplus beside": "one request at a time",
    "full, surplus beside": "as many as run and wait, and none is refused",
    "overload": "ten times the load",
}


@dataclass(frozen=True, slots=True)
class Side:
    """One side in one round: its client's account, and the cores that the service's front end took."""

    offered: Offered
    front_end: float
    responder: float

    def p99(self, *, there: bool = False) -> float:
        """The 99th percentile in milliseconds."""
        return float(np.percentile(self.offered.there_ms if there else self.offered.took_ms, 99))


async def inject(stage: Stage) -> Tally:
    """Set it as the documentation says, then measure all sides one after the other, several times."""
    tally = Tally()
    count = stage.count(250, least=20)
    async with _responder() as responder:
        async with stage.serving() as service:
            running = await _width(_Measured(service, responder, tally), count)
        waiting = running // 4
        flags = ("--limits.running-sequences", str(running))
        flags += ("--limits.waiting-sequences", str(waiting))
        async with stage.serving(*flags) as service:
            await service.ask()
            before = await service.held()
            measured = _Measured(service, responder, tally)
            served = await measured.side(count, in_flight=running)
            per_s = len(served.offered.took_ms) / served.offered.duration_s
            tally.notes.append(f"{running} run and {waiting} wait; {per_s:.1f} requests/s served")
            rounds = [
                await _round(measured, count, running + waiting, OVERLOAD * per_s)
                for _ in range(stage.count(ROUNDS, least=2))
            ]
            tally.left_over = await service.left_over(before)
    _judge(rounds, tally)
    return tally


async def _round(measured: _Measured, count: int, held: int, per_s: float) -> dict[str, Side]:
    """Every side once, in the order of :data:`SIDES`, so that changes of the machine hit all of them."""
    alone = await measured.side(count, in_flight=1)
    one_per_s = len(alone.offered.took_ms) / alone.offered.duration_s
    beside = await measured.side(count, in_flight=1, beside_per_s=per_s - one_per_s)
    full = await measured.side(count, in_flight=held, beside_per_s=per_s * (1 - 1 / OVERLOAD))
    loaded = await measured.side(count, service_per_s=per_s)
    return dict(zip(SIDES, (alone, beside, full, loaded), strict=True))


def _judge(rounds: list[dict[str, Side]], tally: Tally) -> None:
    """Note the figures of all rounds."""
    for name in SIDES:
        sides = [one[name] for one in rounds]
        tally.notes.append(
            f"{name} ({SIDES[name]}): p99 {_spread([side.p99() for side in sides], 0)} ms, "
            f"by the service's clock {_spread([side.p99(there=True) for side in sides], 0)}; cores: "
            f"front end {_spread([side.front_end for side in sides])}, client "
            f"{_spread([side.offered.cpu_share for side in sides])}, responder "
            f"{_spread([side.responder for side in sides])}"
        )
    for under in list(SIDES)[:-1]:
        ratios = [one["overload"].p99() / one[under].p99() for one in rounds]
        tally.notes.append(f"overload / {under}: {_spread(ratios)}")
    if not any(one["overload"].offered.statuses.get(429) for one in rounds):
        tally.fail("nothing was shed, so the service was not overloaded")


def _spread(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


async def _width(measured: _Measured, count: int) -> int:
    """The number of requests that the engine decodes at once without getting much slower."""
    await measured.side(count, in_flight=max(WIDTHS))  # to be warm
    alone_ms = _median_ms(await measured.side(count, in_flight=1))
    found = 1
    for width in WIDTHS:
        slower = _median_ms(await measured.side(count, in_flight=width)) / alone_ms
        measured.tally.notes.append(f"{width} at once: {slower:.2f} times as long as alone")
        if slower > SLOWER:
            break
        found = width
    return found


def _median_ms(side: Side) -> float:
    return float(np.median(side.offered.took_ms))


@dataclass(frozen=True, slots=True)
class _Measured:
    """A service with the responder beside it."""

    service: Service
    responder: psutil.Popen
    tally: Tally

    async def side(
        self,
        answers: int,
        *,
        in_flight: int = 0,
        service_per_s: float = 0.0,
        beside_per_s: float = 0.0,
    ) -> Side:
        """Run the client until the service has given so many answers."""
        plan = Plan(
            service=urlsplit(self.service.url).port or 0,
            beside=self.responder.port,
            request=REQUEST,
            in_flight=in_flight,
            service_per_s=service_per_s,
            beside_per_s=beside_per_s,
            answers=answers,
            seed=self.tally.asked,
        )
        held = (self.service.process, self.responder)
        before_s = [_cpu_s(process) for process in held]
        offered = await _offered(plan)
        front_end, responder = (
            (_cpu_s(process) - cpu_s) / offered.duration_s
            for process, cpu_s in zip(held, before_s, strict=True)
        )
        self._count(offered)
        return Side(offered, front_end, responder)

    def _count(self, offered: Offered) -> None:
        tally = self.tally
        for status, number in offered.statuses.items():
            tally.asked += number
            if status == 200:
                tally.answered += number
            elif status == 429:
                tally.errors["overloaded"] += number
            else:
                tally.lost += [f"status {status}"] * number


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _offered(plan: Plan) -> Offered:
    """Run the client in a process of its own."""
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-m", offered_load.__name__, cwd=ROOT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        answer, _ = await client.communicate(json.dumps(asdict(plan)).encode())
    finally:
        with suppress(ProcessLookupError):
            client.kill()
    found = json.loads(answer)
    found["statuses"] = {int(status): number for status, number in found["statuses"].items()}
    return Offered(**found)


class _Responder(psutil.Popen):
    port: int


@asynccontextmanager
async def _responder() -> AsyncGenerator[_Responder, None]:
    """The responder, listening."""
    command = [sys.executable, "-m", offered_load.__name__, "respond"]
    process = _Responder(command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        line = await asyncio.to_thread(process.stdout.readline)
        process.port = int(line)
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        process.stdout.close()
