"""The simulated fleet: engines, limits and whole runs, against times derived by hand."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.bench.fleet.clock import run_virtually
from service.bench.fleet.command import run_bench
from service.bench.fleet.config import MEASURED, FleetBenchConfig
from service.bench.fleet.engine import ServiceTimes, SimulatedEngine
from service.bench.fleet.limits import SharedLimits, Sharing
from service.bench.fleet.simulation import capacity_of, simulate
from vbon.errors import DataError, OverloadedError

# A step takes 10 ms for one sequence and 1 ms more for each further one.
TIMES = ServiceTimes(source="a test", step_ms={1: 10, 11: 20}, prefill_ms=2)
NO_PREFILL = TIMES.model_copy(update={"prefill_ms": 0.0})


def ends_of(engine: SimulatedEngine, *calls: tuple[float, list[int], list[int]]) -> list[float]:
    """The times at which calls end, each begun at a time with a prompt and lengths."""

    async def call(at_s: float, prompt: list[int], lengths: list[int]) -> float:
        await asyncio.sleep(at_s)
        await engine.decode(prompt, lengths)
        return asyncio.get_running_loop().time()

    async def all_calls() -> list[float]:
        return list(await asyncio.gather(*(call(*one) for one in calls)))

    return run_virtually(all_calls())


def prompt(number: int, tokens: int = 32) -> list[int]:
    return [number] * tokens


@pytest.mark.parametrize(("sequences", "ms"), [(1, 10), (2, 11), (6, 15), (11, 20), (21, 30)])
def test_a_step_s_time_lies_on_the_line_between_those_measured(sequences: int, ms: float) -> None:
    assert TIMES.step_s(sequences) == pytest.approx(ms / 1e3)
    assert TIMES.faster(4).step_s(sequences) == pytest.approx(ms / 4e3)


def test_sequences_share_steps_and_the_rest_goes_faster() -> None:
    # 10 steps of two, then 20 of one.
    ends = ends_of(SimulatedEngine(NO_PREFILL, 8, 0), (0, [], [10]), (0, [], [30]))
    assert ends == pytest.approx([10 * 0.011, 10 * 0.011 + 20 * 0.010])
    # The second begins when the first has decoded 5 tokens: 5 more steps of both, then 5 of one.
    ends = ends_of(SimulatedEngine(NO_PREFILL, 8, 0), (0, [], [10]), (0.05, [], [10]))
    assert ends == pytest.approx([0.05 + 5 * 0.011, 0.05 + 5 * 0.011 + 5 * 0.010])


def test_a_request_ends_with_its_longest_candidate() -> None:
    # Three of 5, then two of 5 more, then one of 10 more.
    ends = ends_of(SimulatedEngine(NO_PREFILL, 8, 0), (0, [], [10, 5, 20]))
    assert ends == pytest.approx([5 * 0.012 + 5 * 0.011 + 10 * 0.010])


def test_a_full_engine_lets_others_wait_in_order() -> None:
    engine = SimulatedEngine(NO_PREFILL, 1, 0)
    ends = ends_of(engine, (0, [], [10]), (0.01, [], [5]), (0.02, [], [1]))
    assert ends == pytest.approx([0.10, 0.15, 0.16])


def test_a_prompt_is_computed_once_for_all_its_candidates_and_stops_the_others() -> None:
    engine = SimulatedEngine(TIMES, 8, 1000)
    # 32 tokens of 2 ms stop the first after 4 of its 10 tokens; then 6 steps of three.
    ends = ends_of(engine, (0, [], [10]), (0.042, prompt(1), [6, 6]))
    # The empty prompt counts as one token.
    assert engine.computed == 1 + 32
    assert ends == pytest.approx([0.042 + 0.064 + 6 * 0.012] * 2)


def test_a_prefix_that_is_cached_is_not_computed_again_until_it_is_forgotten() -> None:
    engine = SimulatedEngine(TIMES, 8, 64)
    for prompts, computed in (
        ([prompt(1)], 32),
        ([prompt(1)], 33),  # the last token alone
        ([[*prompt(1), *prompt(2, 16)]], 33 + 16),
        ([prompt(3, 48)], 49 + 48),  # 96 tokens: the longest unused go
        ([prompt(3, 48)], 98),
    ):
        ends_of(engine, *((0.0, one, [1]) for one in prompts))
        # Each run has a clock of its own.
        engine._at_s = 0.0
        assert engine.computed == computed
    ends_of(engine, (0.0, prompt(1), [1]))
    assert engine.computed > 98 + 1


def shared(**changed: Any) -> SharedLimits:
    given = {
        "running": 1, "waiting": 1, "running_tokens": 100, "front_ends": 4, "round_trip_s": 0.2,
        "message_s": 0.01, "notice_s": 1000.0,
    }  # fmt: skip
    return SharedLimits(**given | changed)


def test_shared_limits_cost_a_round_trip_and_the_messages_before_one_s_own() -> None:
    limits = shared(running=2)
    entered: list[float] = []

    async def ask() -> None:
        async with limits.enter(1, 10):
            entered.append(asyncio.get_running_loop().time())
            await asyncio.sleep(5)

    async def two() -> None:
        await asyncio.gather(ask(), ask())

    run_virtually(two())
    # Both arrive at .1; the host handles one until .11, the other until .12, and an answer takes .1 more.
    assert entered == pytest.approx([0.21, 0.22])
    # Two messages each, and one notice to four front ends.
    assert limits.busy_s == pytest.approx((2 * 2 + 4) * 0.01)


def test_places_are_free_once_the_host_has_heard_of_it_and_the_queue_has_an_end() -> None:
    limits = shared()

    async def ask(at_s: float) -> float | None:
        await asyncio.sleep(at_s)
        try:
            async with limits.enter(1, 10):
                return asyncio.get_running_loop().time()
        except OverloadedError:
            return None

    async def three() -> list[float | None]:
        return list(await asyncio.gather(ask(0), ask(0.1), ask(0.15)))

    first, second, third = run_virtually(three())
    assert first == pytest.approx(0.1 + 0.01 + 0.1)
    # Told at .21, heard at .31 and handled until .32; the answer takes .1.
    assert second == pytest.approx(0.32 + 0.1)
    assert third is None


def small(**changed: Any) -> FleetBenchConfig:
    given: dict[str, Any] = {
        "requests": 50, "least_requests": 200, "seeds": 1, "n": 4, "max_num_seqs": 16,
        "running_sequences": 32, "waiting_sequences": 32, "prefix_tokens": 64, "new_tokens": 16,
    }  # fmt: skip
    return FleetBenchConfig(**given | changed)


def test_equal_seeds_give_equal_figures_and_others_other_ones() -> None:
    config = small()
    first, again, other = (simulate(config, 2, "shared", seed, rate=20) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("rate", [1, 40])
def test_a_host_that_costs_nothing_is_as_good_as_limits_of_one_s_own(rate: float) -> None:
    config = small(round_trip_ms=0, message_us=0)
    ways: tuple[Sharing, ...] = ("shared", "split", "each")
    host, part, all_of_them = (asdict(simulate(config, 1, way, 0, rate=rate)) for way in ways)
    assert part == all_of_them
    # What happens at one moment may have another order.
    host["host_busy"] = 0.0
    assert host == pytest.approx(part, rel=0.02)
    assert (part["refused"] > 0) == (rate == 40)


def test_one_server_answers_as_queueing_theory_says() -> None:
    # M/M/1 at half of its capacity: half of all are answered within ln 2 / (mu - lambda). 2,400 requests that
    # count: the median's standard error is about 4%, so 15% is missed once in several thousand seeds.
    config = small(
        n=1, max_num_seqs=1, running_sequences=10**6, mean_tokens=100, max_tokens=2000, front_end_ms=0,
        round_trip_ms=0, least_requests=3000,
    )  # fmt: skip
    rate = 0.5 / (100 * config.times.step_s(1))
    free = config.model_copy()
    free.__dict__["times"] = config.times.model_copy(update={"prefill_ms": 0.0})
    found = simulate(free, 1, "split", 3, rate=rate)
    assert found.p50_s == pytest.approx(math.log(2) / rate, rel=0.15)
    assert found.refused == 0


def test_a_host_that_is_busy_all_the_time_is_the_fleet_s_limit() -> None:
    # Two messages of 20 ms for each request: 25 requests a second, whatever the replicas could do.
    config = small(message_us=20_000, notice_ms=1e9, running_sequences=10**6, n=1)
    found = simulate(config, 8, "shared", 0, rate=200)
    assert found.answered == pytest.approx(25, rel=0.03)
    assert found.host_busy == pytest.approx(1, abs=0.02)


def test_a_replica_s_capacity_is_below_the_bound_of_a_full_engine() -> None:
    config = small()
    assert 0.3 * config.bound < capacity_of(config) < config.bound


def test_the_command_prints_each_fleet_and_writes_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = tmp_path / "times.json"
    times.write_text(TIMES.model_dump_json(), encoding="utf-8")
    file = tmp_path / "fleet.json"
    result = run_bench(
        small(
            replicas=[1, 5],
            service_times=times,
            json_file=file,
            speed=2,
            sharing=["shared", "split"],
        )
    )
    shown = capsys.readouterr()
    assert "a test, 2 times as fast" in shown.out.replace("\n", " ")
    assert "5 replicas, split: p99" in shown.err
    assert json.loads(file.read_text(encoding="utf-8"))["fleets"] == result["fleets"]
    sizes = [(one["replicas"], one["sharing"]) for one in result["fleets"]]
    assert sizes == [(1, "shared"), (1, "split"), (5, "shared"), (5, "split")]


def test_a_run_in_which_all_are_refused_has_no_times(tmp_path: Path) -> None:
    # The four requests that count arrive in a moment, while the first one holds all places.
    file = tmp_path / "fleet.json"
    run_bench(
        small(replicas=[1], sharing=["split"], requests=5, least_requests=5, max_num_seqs=4,
              running_sequences=4, waiting_sequences=0, load=1e6, json_file=file)
    )  # fmt: skip
    ((one,),) = (fleet["runs"] for fleet in json.loads(file.read_text(encoding="utf-8"))["fleets"])
    assert (one["refused"], one["goodput"]) == (1, 0)
    assert (one["p50_s"], one["p99_s"]) == (None, None)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"source": "x", "step_ms": {"1": 1}, "prefill_ms": 0}',
     '{"source": "x", "step_ms": {"1": 1, "2": -1}, "prefill_ms": 0}',
     '{"source": "x", "step_ms": {"1": NaN, "2": 2}, "prefill_ms": 0}',
     '{"source": "x", "step_ms": {"1": 1, "2": 1e999}, "prefill_ms": 0}',
     '{"source": "x", "step_ms": {"1": 1, "2": 2}, "prefill_ms": Infinity}'],
)  # fmt: skip
def test_service_times_that_cannot_be_are_refused_with_their_file(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "times.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"times\.json"):
        _ = small(service_times=file).times


@pytest.mark.parametrize(
    "name",
    ["speed", "front_end_ms", "round_trip_ms", "message_us", "load", "mean_tokens", "objective"],
)
def test_an_infinite_number_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}\n.*finite"):
        small(**{name: math.inf})


def test_the_defaults_are_those_that_were_measured() -> None:
    assert FleetBenchConfig().times == MEASURED
