"""Arithmetic of the service's bench, and its load client against a real server."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from time import process_time

import numpy as np
import pytest

from service.bench import token_need
from service.bench.config import ROWS as DEFAULT_ROWS
from service.bench.config import BenchSettings
from service.bench.figures import Figure, in_turns, ratios, table_of
from service.bench.load import LoadJob, LoadResult, load_in_child, run_load
from service.bench.rows import ROWS
from service.bench.run import _prompts, run_bench
from service.bench.token_need import Spent, relative_need, tokens_needed
from service.bench.wire import SideError
from service.bench.workers import children, cpu_s
from tests.integration.test_bench_contests import bench_of
from tests.unit.fakes import ChatEngine, make_runtime, served
from vbon.errors import DataError, InvalidInputError
from vbon.maths.intervals import MedianRange
from vbon.prompts import Prompt


async def test_sides_take_turns_and_the_warm_up_is_thrown_away() -> None:
    calls: list[str] = []

    async def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    a, b = await in_turns(3, lambda: side("a"), lambda: side("b"))
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert (a, b) == ([3.0, 6.0, 7.0], [4.0, 5.0, 8.0])


def test_ratios_are_of_neighbours() -> None:
    assert ratios([2, 9, 4], [1, 3, 4]) == MedianRange(2.0, 1.0, 3.0, 3)


@pytest.mark.parametrize(
    ("value", "goal", "at_least", "reached"),
    [
        (0.96, 0.95, True, True),
        (0.94, 0.95, True, False),
        (0.4, 0.5, False, True),
        (1, None, True, None),
    ],
)
def test_reached(value: float, goal: float | None, at_least: bool, reached: bool | None) -> None:
    assert Figure("x", MedianRange(value, 0, 9, 1), goal, at_least, "").reached is reached


def test_crossing_by_hand() -> None:
    tokens, rewards = np.array([10.0, 30.0, 20.0]), np.array([1.0, 3.0, 2.5])
    assert tokens_needed(tokens, rewards, 0.5) == 10
    assert tokens_needed(tokens, rewards, 1.75) == 15
    assert tokens_needed(tokens, rewards, 2.75) == 25
    assert tokens_needed(tokens, rewards, 4) == math.inf


def test_relative_cost_is_paired_over_prompts() -> None:
    """Prompts differ far more than methods do; pairing keeps that out of the interval."""
    rng = np.random.default_rng(3)
    level = rng.normal(0, 50, 40)
    target = Spent(level + 2.0, np.full(40, 100.0))
    curve = [Spent(level + gain, np.full(40, cost)) for gain, cost in ((1, 20.0), (3, 60.0))]
    found = relative_need(curve, target)
    assert (found.median, found.low, found.high) == pytest.approx((0.4, 0.4, 0.4))


def test_prompts_without_a_reward_are_left_out_everywhere() -> None:
    target = Spent(np.array([1.0, 1.0, np.nan]), np.array([10.0, 10.0, 999.0]))
    curve = [
        Spent(np.array([0.0, np.nan, 5.0]), np.array([1.0, 1.0, 1.0])),
        Spent(np.array([2.0, 2.0, 2.0]), np.array([5.0, 500.0, 500.0])),
    ]
    assert relative_need(curve, target).median == pytest.approx(0.3)
    assert relative_need(curve, target).count == 1


def test_a_bench_of_a_service_with_keys_is_refused_at_the_start() -> None:
    """The bench sends no key, so every request would get 401 after all models had been loaded."""
    with pytest.raises(InvalidInputError, match=r"--auth\.keys-file none") as refused:
        run_bench(BenchSettings(auth={"keys_file": "keys.jsonl"}))  # type: ignore[arg-type]
    assert refused.value.field == "auth.keys_file"


def test_unknown_rows_are_named() -> None:
    with pytest.raises(InvalidInputError, match="unknown row 'speed'"):
        run_bench(BenchSettings(rows=["speed"]))


CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_chats_are_refused_where_other_programs_take_texts(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(CHAT) + "\nplain\n".replace("plain", json.dumps({"prompt": "a"})))
    with pytest.raises(DataError, match="has chats, but client compare programs on texts"):
        run_bench(BenchSettings(prompts=file, rows=["client", "http"]))
    assert len(_prompts(BenchSettings(prompts=file, rows=["http"]))) == 2


async def test_chats_are_sent_as_chats() -> None:
    engines = {name: ChatEngine(f"fake-{name}") for name in ("ref", "vbon")}
    runtime = make_runtime(engines=engines)
    async with served(runtime) as url:
        bench = bench_of(runtime, url)
        bench.prompts = [Prompt(messages=({"role": "user", "content": "hi"},)), Prompt(text="a")]
        found = await bench.over_http("bon", 4, 2)
    assert len(found.latencies_s) == 4
    assert not found.errors


def test_every_default_row_exists() -> None:
    assert set(DEFAULT_ROWS) <= ROWS.keys()


def test_table_shows_goal_and_verdict() -> None:
    figure = Figure("a ratio", MedianRange(0.9, 0.8, 1.0, 5), 0.95, True, "1 against 2")
    table = table_of(5, [figure])
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["0.9 \\[0.8, 1]"]
    assert (cells[2], cells[3]) == ([">= 0.95"], ["no"])


async def test_load_counts_what_the_server_says() -> None:
    async with served(make_runtime()) as url:
        bodies = [{"prompt": f"prompt {i}", "n": 4, "max_tokens": 6, "seed": i} for i in range(9)]
        found = await run_load(LoadJob(f"{url}/generate?mode=bon", bodies, 3))
        again = await load_in_child(LoadJob(f"{url}/generate?mode=bon", bodies, 2))
        broken = await run_load(LoadJob(f"{url}/generate?mode=bon", [*bodies, {"prompt": ""}], 3))
        with pytest.raises(SideError, match="'422': 1"):
            await load_in_child(LoadJob(f"{url}/generate?mode=bon", [{"prompt": ""}], 1))
    assert len(found.latencies_s) == 9
    assert (found.rewards, found.generated_tokens) == (again.rewards, again.generated_tokens)
    assert broken.errors == {"422": 1}
    assert broken.rewards == found.rewards
    assert found.tokens_per_second == pytest.approx(sum(found.generated_tokens) / found.seconds)
    assert all(scoring > 0 for scoring in found.scoring_ms)
    assert all(rerank >= 0 for rerank in found.rerank_ms)


async def test_strategies_are_measured_with_a_prior_of_the_policys_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str | None, dict[str, object]]] = []
    monkeypatch.setattr(token_need, "COSTS", (0.1,))
    runtime = make_runtime()
    async with served(runtime) as url:
        bench = bench_of(runtime, url)
        over_http = bench.over_http

        async def watched(
            mode: str,
            requests: int,
            concurrency: int,
            *,
            policy: str | None = None,
            **extra: object,
        ) -> LoadResult:
            asked.append((mode, policy, extra))
            return await over_http(mode, requests, concurrency, policy=policy, **extra)

        monkeypatch.setattr(bench, "over_http", watched)
        figure = await token_need.token_need(bench)
    prior = next(extra for _, _, extra in asked if "prior_mean" in extra)
    assert prior["candidate_cost"] == pytest.approx(0.1 * prior["prior_sd"])  # type: ignore[operator]
    assert ("bon", "vbon") in {(mode, policy) for mode, policy, _ in asked}
    assert "adaptive-bon with a prior" in figure.detail
    assert "bon@vbon" in figure.detail
    assert "@" not in figure.name


def test_cpu_time_is_that_of_the_named_processes() -> None:
    tick_s = 2 / os.sysconf("SC_CLK_TCK")
    before, own = cpu_s([os.getpid()]), process_time()
    while process_time() < own + 0.05:
        pass
    assert cpu_s([os.getpid()]) - before >= 0.05 - tick_s
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in children(os.getpid())
        assert cpu_s([child.pid]) < cpu_s([os.getpid()])
        child.kill()
