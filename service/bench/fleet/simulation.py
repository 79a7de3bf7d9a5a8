"""One simulated run: clients, front ends, limits, placement and engines."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from service.bench.fleet.clock import run_virtually
from service.bench.fleet.config import FleetBenchConfig
from service.bench.fleet.engine import SimulatedEngine
from service.bench.fleet.limits import Limits, OwnLimits, SharedLimits, Sharing
from service.context.caller import Caller, current_caller
from vbon.engine.affinity import Load, PrefixAffinity
from vbon.errors import OverloadedError

# Requests of this share of a run, which find the engines emptier than the later ones, are not counted.
_WARM_UP = 0.2
_CALLERS = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of one run.

    Attributes:
        goodput: requests a second that were answered within the objective.
        answered: requests a second that were answered, over the whole run to its last answer.
        offered: requests a second that arrived.
        refused: share of the requests that got 429.
        prefill: prompt tokens computed for each request.
        host_busy: share of the time in which the host of shared limits worked; it cannot exceed 1.
    """

    p50_s: float
    p99_s: float
    goodput: float
    answered: float
    offered: float
    refused: float
    prefill: float
    host_busy: float


@dataclass(frozen=True, slots=True)
class _Request:
    arrives_s: float
    caller: Caller
    front_end: int
    prompt: list[int]
    lengths: list[int]


class _FrontEnd:
    """Admits requests, and places their candidates by the loads that it knows: its own."""

    def __init__(
        self, limits: Limits, engines: list[SimulatedEngine], config: FleetBenchConfig
    ) -> None:
        self._limits, self._engines, self._config = limits, engines, config
        self._affinity = PrefixAffinity()
        self._in_flight = [0] * len(engines)
        self._served = [0] * len(engines)
        self._free_at_s = 0.0

    async def answer(self, request: _Request) -> float:
        """The time at which the answer is complete.

        Raises:
            OverloadedError: the queue is full.
        """
        loop = asyncio.get_running_loop()
        async with self._limits.enter(len(request.lengths), self._config.max_tokens):
            await self._work(len(request.lengths))
            await self._decode(request)
            return loop.time()

    async def _work(self, sequences: int) -> None:
        """The front end's own processor time, one request after another."""
        now_s = asyncio.get_running_loop().time()
        work_s = sequences * self._config.front_end_ms / 1e3
        self._free_at_s = max(self._free_at_s, now_s) + work_s
        await asyncio.sleep(self._free_at_s - now_s)

    async def _decode(self, request: _Request) -> None:
        sequences = len(request.lengths)
        loads = [
            Load(str(place), in_flight, self._config.max_num_seqs, self._served[place])
            for place, in_flight in enumerate(self._in_flight)
        ]
        own = sum(self._in_flight) + sequences
        all_per_own = max(1.0, self._limits.running / own)
        group = self._affinity.group(request.prompt)
        place = int(group.choose(loads, sequences, all_per_own) or 0)
        self._in_flight[place] += sequences
        await asyncio.sleep(self._config.round_trip_ms / 1e3)
        await self._engines[place].decode(request.prompt, request.lengths)
        self._in_flight[place] -= sequences
        self._served[place] += sequences


def capacity_of(config: FleetBenchConfig) -> float:
    """Requests a second that a fleet of one replica answers while three times as many arrive as it could."""
    return simulate(config, 1, "split", config.first_seed, rate=3 * config.bound).answered


def simulate(
    config: FleetBenchConfig, replicas: int, sharing: Sharing, seed: int, *, rate: float
) -> Outcome:
    """Run one fleet until all of its requests have ended.

    Args:
        rate: requests a second that arrive.
    """
    return run_virtually(_simulated(config, replicas, sharing, seed, rate))


async def _simulated(
    config: FleetBenchConfig, replicas: int, sharing: Sharing, seed: int, rate: float
) -> Outcome:
    times = config.times
    cache_tokens = config.cache_tokens
    engines = [SimulatedEngine(times, config.max_num_seqs, cache_tokens) for _ in range(replicas)]
    number_of_front_ends = config.front_ends(replicas)
    limits, host = _limits(config, replicas, number_of_front_ends, sharing)
    front_ends = [_FrontEnd(own, engines, config) for own in limits]
    requests = _requests(config, replicas, number_of_front_ends, seed, rate)
    begun = int(_WARM_UP * len(requests))
    computed = 0

    async def ask(request: _Request) -> float | None:
        current_caller.set(request.caller)
        try:
            return await front_ends[request.front_end].answer(request) - request.arrives_s
        except OverloadedError:
            return None

    loop = asyncio.get_running_loop()
    tasks = []
    for number, request in enumerate(requests):
        await asyncio.sleep(request.arrives_s - loop.time())
        if number == begun:
            computed = sum(engine.computed for engine in engines)
        tasks.append(asyncio.create_task(ask(request)))
    latencies = list(await asyncio.gather(*tasks))
    counted = latencies[begun:]
    answered = np.array([latency for latency in counted if latency is not None])
    window_s = requests[-1].arrives_s - requests[begun].arrives_s
    p50_s, p99_s = np.quantile(answered, [0.5, 0.99]) if len(answered) else (np.nan, np.nan)
    return Outcome(
        p50_s=float(p50_s),
        p99_s=float(p99_s),
        goodput=float((answered <= config.objective_s).sum() / window_s),
        answered=sum(latency is not None for latency in latencies) / loop.time(),
        offered=len(counted) / window_s,
        refused=1 - len(answered) / len(counted),
        prefill=(sum(engine.computed for engine in engines) - computed) / max(1, len(answered)),
        host_busy=0.0 if host is None else host.busy_s / loop.time(),
    )


def _limits(
    config: FleetBenchConfig, replicas: int, front_ends: int, sharing: Sharing
) -> tuple[list[Limits], SharedLimits | None]:
    """The limits of each front end, and the host of shared ones."""
    running, waiting = replicas * config.running_sequences, replicas * config.waiting_sequences
    if sharing == "shared":
        host = SharedLimits(
            running=running,
            waiting=waiting,
            running_tokens=running * config.max_tokens,
            front_ends=front_ends,
            round_trip_s=config.round_trip_ms / 1e3,
            message_s=config.message_us / 1e6,
            notice_s=config.notice_ms / 1e3,
        )
        return [host] * front_ends, host
    parts = front_ends if sharing == "split" else 1
    running, waiting = max(1, running // parts), waiting // parts
    return [
        OwnLimits(running=running, waiting=waiting, running_tokens=running * config.max_tokens)
        for _ in range(front_ends)
    ], None


def _requests(
    config: FleetBenchConfig, replicas: int, front_ends: int, seed: int, rate: float
) -> list[_Request]:
    """The requests of a run: Poisson arrivals, from conversations that begin alike each time."""
    rng = random.Random(f"{seed} {replicas}")
    # Token ids only tell prompts apart: each one is another number.
    ids = count()
    openings = [
        list(islice(ids, config.prefix_tokens)) for _ in range(replicas * config.conversations)
    ]
    now_s = 0.0
    requests = []
    for _ in range(max(config.least_requests, replicas * config.requests)):
        now_s += rng.expovariate(rate)
        lengths = [
            min(config.max_tokens, 1 + int(rng.expovariate(1 / config.mean_tokens)))
            for _ in range(config.n)
        ]
        requests.append(
            _Request(
                now_s,
                Caller(f"key {rng.randrange(_CALLERS)}"),
                rng.randrange(front_ends),
                [*rng.choice(openings), *islice(ids, config.new_tokens)],
                lengths,
            )
        )
    return requests
