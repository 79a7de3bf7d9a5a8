"""Tests of the reports, comparisons and command line of the load test."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import shlex
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from service.loadtest.analysis.compare import compare_runs
from service.loadtest.analysis.text import number, signed
from service.loadtest.analysis.warnings import cell_warnings
from service.loadtest.config import LoadTestSettings
from service.loadtest.report.charts import grouped_warnings
from service.loadtest.report.terminal import print_result
from service.loadtest.report.write import cells_csv, html_page
from service.loadtest.schema import LoadTestResult, RoundResult
from tests.interpreter import run_command
from tests.unit.slow_server import SlowServer, listening
from tests.unit.test_loadtest import CLOCKED, measure
from tests.unit.virtual_clock import run_virtually
from vbon.config import load_settings
from vbon.maths.statistics import holm, joint_permutation, median_range, welch_interval

HOSTILE = '</script><script>alert(1)</script><img src="http://evil.example/x.png" onerror=alert(2)>{{main}}'
ROOT = Path(__file__).resolve().parents[2]
TRAINING = {
    "objective": "vbon",
    "cost": {"training_seconds": 36.0, "processes": 1},
    "heldout": {
        key: {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "count": 3}
        for key, mean in (("reward", 4.0), ("win_rate", 0.9), ("kl_nats", 1.9))
    },
}


async def whole_run(out: Path, **changes: Any) -> LoadTestResult:
    """A run of a second or two with every kind of result."""
    server = SlowServer(
        first_s=0.005, tokens=2, gap_s=0.001, training=TRAINING,
        rewards={"ref": 0.5, "vbon": 1.6, "bon": 0.0}, text=HOSTILE,
    )  # fmt: skip
    async with listening(server):
        return await measure(
            server, out, **{"modes": ["ref", "bon", "vbon"], "n": [2, 4], "concurrency": [1, 2],
            "rate": [20], "duration_s": 0.15, "warmup_s": 0.0, "rounds": 2, "quality_prompts": 3,
            "slo": ["e2e:1000"], **changes}
        )  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> LoadTestResult:
    run = whole_run(tmp_path_factory.mktemp("run"), currency='E"<b>')
    return run_virtually(run, *CLOCKED)


def test_the_result_survives_json_and_fits_its_schema(result: LoadTestResult) -> None:
    text = result.model_dump_json()
    assert LoadTestResult.model_validate_json(text) == result
    assert LoadTestResult.model_json_schema()["properties"].keys() == json.loads(text).keys()
    assert result.schema_version == "1.3"


def test_the_break_even_is_that_of_the_card(result: LoadTestResult) -> None:
    """36 s at 1 per hour cost 0.01. Mean rewards: best-of-4 3, one sample 1.5, best-of-2 7/3."""
    pair = next(one for one in result.break_even if one.sampled == "bon (N=4)")
    costs = {cost.variant: cost.per_1000 / 1000 for cost in result.costs}
    assert pair.training_cost == pytest.approx(0.01)
    assert pair.reward_given_up is not None
    assert pair.reward_given_up.mean == pytest.approx(3 - 1.6)
    assert pair.equal_n == pytest.approx(1 + (1.6 - 1.5) / (7 / 3 - 1.5))
    saved = costs["bon (N=4)"] - costs["vbon"]
    if saved > 0:
        assert pair.requests == pytest.approx(0.01 / saved)
    else:
        assert pair.requests is None


def test_the_page_loads_nothing_and_escapes_everything(result: LoadTestResult) -> None:
    texts = {"decision": [HOSTILE, HOSTILE], "warnings": [HOSTILE]}
    page = html_page(result.model_copy(update=texts))
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<script>alert" not in page
    assert "onerror=alert(2)>" not in markup
    assert "<b>" not in markup
    assert "&lt;script&gt;alert(1)" in markup
    assert "{{main}}" in markup  # a slot in a text stays text
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?(?:https?:)?//""", markup)
    assert not re.search(r"@import|url\(", markup)
    assert "default-src 'none'" in page
    scripts = re.findall(r"<script[^>]*>", page)
    assert not any("src" in script for script in scripts)


def test_a_block_too_short_for_an_answer_is_told(result: LoadTestResult) -> None:
    cell = result.cells[0].model_copy(update={"client_cpu": 0.0, "errors": {}})
    assert cell_warnings(cell) == []
    told = cell_warnings(cell.model_copy(update={"e2e_ms": None}))
    assert len(told) == 1
    assert "longer than an answer takes" in told[0]
    assert cell.e2e_ms is not None
    block_s = cell.e2e_ms.p50 / 1e3
    assert cell_warnings(cell, 3 * block_s) == []
    (told,) = cell_warnings(cell, 1.5 * block_s)
    assert "affects its figures" in told


def charts_in(page: str) -> list[str]:
    (data,) = re.findall(r'id="chart-data">(.*?)</script>', page)
    return [chart["title"] for chart in json.loads(data)["charts"]]


def test_the_page_has_every_figure_and_the_decision_first(result: LoadTestResult) -> None:
    page = html_page(result)
    assert charts_in(page) == [
        "Reward and cost", "Throughput and latency", "Reward of best-of-n", "KL and win rate",
        "Rewards of single answers",
    ]  # fmt: skip
    (data,) = re.findall(r'id="decision-data">(.*?)</script>', page)
    assert len(json.loads(data)["pairs"]) == len(result.break_even)
    main = page[page.index("<main") :]
    assert main.index('id="decide"') < main.index('class="card stack tight decision"')
    assert main.index('class="card stack tight decision"') < main.index('id="charts"')
    assert "sha256:vbon" in page
    assert "--burstiness" in main
    assert len(page) < 1_000_000


def test_a_page_of_little_has_no_empty_parts(result: LoadTestResult) -> None:
    bare = result.model_copy(
        update={"quality": [], "curve": [], "break_even": [], "examples": [], "costs": []}
    )
    page = html_page(bare)
    assert charts_in(page) == ["Throughput and latency"]
    assert "Break-even</h3>" not in page


def test_warnings_come_in_three_groups_with_a_command_and_none_is_lost(
    result: LoadTestResult,
) -> None:
    warnings = [
        "The run was interrupted: 1 of 3 blocks were measured.",
        "Rewards were measured on only 3 prompts.",
        "The client was busy.",
    ]
    given = {"modes": ["ref", "bon"], "n": [4, 8], "rounds": 7, "quality_prompts": 20}
    changed = {"warnings": [*warnings, *warnings], "settings": result.settings | given}
    groups = grouped_warnings(result.model_copy(update=changed))
    assert len(groups) == 3
    assert sorted(text for one in groups for text in one.texts) == sorted([*warnings, *warnings])
    asked = [read_command(one.command) for one in groups]
    assert [(one.rounds, one.quality_prompts) for one in asked] == [(14, 64), (5, 80), (5, 64)]
    assert {(one.url, *one.modes, *one.n) for one in asked} == {
        (result.server.url, "ref", "bon", 4, 8)
    }
    assert grouped_warnings(result.model_copy(update={"warnings": []})) == []


SAME: dict[str, Any] = {
    "api": "openai", "api_key_env": "KEY", "modes": ["my-model"], "prompts": "my prompts.csv",
    "prompt_column": "question", "encoding": "utf-8", "prompt_count": 200, "max_tokens": 7,
    "temperature": 0.5, "ignore_eos": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "rounds", "scored"),
    [
        (SAME, 10, 256),
        (SAME | {"rounds": 900, "quality_prompts": 100, "prompt_count": 100}, 1000, 400),
        (SAME | {"prompts": None, "prompt_column": None, "prompt_words": "20:200"}, 10, 256),
    ],
)
def test_the_command_asks_the_same_server_the_same_and_scores_more_prompts(
    result: LoadTestResult, given: dict[str, Any], rounds: int, scored: int
) -> None:
    before = LoadTestSettings(**given)
    warnings = ["The run was interrupted.", "Rewards were measured on few prompts."]
    changed = {"warnings": warnings, "settings": before.model_dump(mode="json")}
    again, more = (
        read_command(one.command) for one in grouped_warnings(result.model_copy(update=changed))
    )
    for name in SAME.keys() - {"prompt_count"}:
        assert getattr(again, name) == getattr(more, name) == getattr(before, name), name
    assert (again.rounds, again.prompt_count) == (rounds, before.prompt_count)
    assert min(more.quality_prompts, more.prompt_count) == scored
    # The prompts of a load test of the page are gone with its directory.
    hosted = changed["settings"] | {"supervised": True}
    for one in grouped_warnings(result.model_copy(update=changed | {"settings": hosted})):
        assert read_command(one.command).prompts is None


def read_command(command: str) -> LoadTestSettings:
    """The settings that the command has; it fails on a flag that does not exist."""
    words = shlex.split(command)
    assert words[:3] == ["vbon", "loadtest", "run"]
    return load_settings(LoadTestSettings, words[3:], program="vbon loadtest run")


async def test_no_password_of_the_store_is_sent_around(tmp_path: Path) -> None:
    store = "postgresql+psycopg://user:0pen-sesame@host:5432/runs"
    server = SlowServer(first_s=0.001, tokens=1)
    async with listening(server):
        result = await measure(server, tmp_path, store=store, duration_s=0.1, warmup_s=0)
    assert result.settings["store"] == "postgresql+psycopg://user:***@host:5432/runs"
    assert "0pen-sesame" not in html_page(result)


def test_csv_has_a_line_a_cell(result: LoadTestResult) -> None:
    rows = list(csv.DictReader(io.StringIO(cells_csv(result))))
    assert [row["variant"] for row in rows] == [cell.variant for cell in result.cells]
    assert result.cells[0].e2e_ms is not None
    assert float(rows[0]["e2e_ms.p95"]) == result.cells[0].e2e_ms.p95


def test_the_terminal_has_the_verdict_first_and_one_table(result: LoadTestResult) -> None:
    warned = result.model_copy(update={"warnings": [f"warning {i}" for i in range(5)]})

    def printed(*, full: bool) -> str:
        console = Console(file=io.StringIO(), width=5000)
        print_result(console, warned, full=full)
        return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    short, full = printed(full=False), printed(full=True)
    assert short.splitlines()[:3] == result.decision[:3]
    assert short.count("Each mode in a line") == 1
    assert "Throughput" not in short
    assert [f"warning {i}" in short for i in range(5)] == [True] * 3 + [False] * 2
    assert "2 more warnings in the report" in short
    for cost in result.costs:  # every variant has its line, with the price of the other tables
        (line,) = [row for row in short.splitlines() if row.startswith(f"│ {cost.variant} ")]
        assert f"{number(cost.per_1000)} " in line
    for words in [*result.decision, "Throughput", "Latency", "warning 4"]:
        assert words in full


def faster(result: LoadTestResult, factor: float, rounds: int, gain: float = 0.0) -> LoadTestResult:
    """The same run with invented rounds: noise of some percent around a speed, and shifted rewards."""
    changed = result.model_copy(deep=True)
    for cell in changed.cells:
        cell.rounds = [
            RoundResult(round=i, requests=9, requests_per_s=10 * factor * (1 + 0.01 * ((7 * i) % 5)),
                  returned_tokens_per_s=1, p50_e2e_ms=100 / factor * (1 + 0.01 * ((3 * i) % 5)),
                  p95_e2e_ms=150 / factor * (1 + 0.01 * (i % 5)))
            for i in range(rounds)
        ]  # fmt: skip
    for one in changed.quality:
        one.prompt_rewards = {str(i): i + gain * (1 + 0.1 * (i % 3)) for i in range(10)}
    return changed


def test_compare_says_different_same_and_too_few(result: LoadTestResult) -> None:
    base = faster(result, 1.0, rounds=5)
    same = compare_runs(base, faster(result, 1.0, rounds=6))
    assert same.statement.startswith("No difference beyond chance: 0 of")
    assert not same.differs
    assert not same.worse
    slower = compare_runs(base, faster(result, 0.8, rounds=5, gain=-1.0))
    assert slower.statement.startswith("The runs differ, and B is worse: ")
    assert slower.statement.endswith(f"; and {len(slower.differences) - 6} more.")
    assert slower.worse
    speed = next(one for one in slower.differences if one.measure == "requests/s")
    assert speed.change == pytest.approx(0.8)
    assert speed.p == pytest.approx(2 / 252)
    assert {one.verdict for one in slower.differences} == {"worse"}
    better = compare_runs(base, faster(result, 1.25, rounds=5, gain=1.0))
    assert {one.verdict for one in better.differences} == {"better"}
    assert better.differs
    assert not better.worse


def test_a_comparison_names_the_models_that_differ(result: LoadTestResult) -> None:
    assert compare_runs(result, result).models_changed == {}
    server = result.server.model_dump(mode="json")
    for mode in server["modes"]:
        if mode["name"] == "vbon":
            mode["policy"]["revision"] = "sha256:other"
    other = LoadTestResult.model_validate({**result.model_dump(mode="json"), "server": server})
    (before,) = {m.policy.revision for m in result.server.modes if m.policy and m.name == "vbon"}
    assert compare_runs(result, other).models_changed == {"vbon": (before, "sha256:other")}
    alone = result.model_copy(update={"cells": [c for c in result.cells if c.mode != "vbon"]})
    assert compare_runs(alone, result).models_changed["vbon"] == (None, before)


def test_what_cannot_reach_its_level_is_not_tested_and_leaves_the_level_to_the_rest(
    result: LoadTestResult,
) -> None:
    """The smallest p is 2/20 for 3 rounds, 2/70 for 4, 2/252 for 5, and 2/16 for rewards of 4 prompts."""
    alone = result.model_copy(update={"quality": []})
    few = compare_runs(faster(alone, 1.0, 3), faster(alone, 0.5, 3))
    assert {one.verdict for one in few.differences} == {"too few rounds"}
    assert few.statement == (
        "Too few rounds to tell a change from chance: measure at least 4 rounds in each run."
    )
    assert not few.differs
    four = compare_runs(faster(alone, 1.0, 4), faster(alone, 0.5, 4))
    assert {(one.level, one.verdict) for one in four.differences} == {(0.05, "worse")}
    beside = compare_runs(faster(result, 1.0, 4), faster(result, 0.5, 4, gain=1.0))
    kinds = {(one.relative, one.level, one.verdict) for one in beside.differences}
    assert kinds == {(True, None, "too few rounds"), (False, 0.05, "better")}
    assert beside.statement.endswith(
        "because there are too few rounds: measure at least 5 rounds in each run."
    )
    base, other = faster(result, 1.0, 5), faster(result, 0.5, 5, gain=1.0)
    assert {one.level for one in compare_runs(base, other).differences} == {0.025}
    for one in other.quality:
        one.prompt_rewards = {key: one.prompt_rewards[key] for key in "0123"}
    kinds = {(d.relative, d.level, d.verdict) for d in compare_runs(base, other).differences}
    assert kinds == {(True, 0.05, "worse"), (False, None, "too few prompts")}


def noisy(result: LoadTestResult, rng: np.random.Generator, rounds: int = 5) -> LoadTestResult:
    """Nine cells with noise by round, by block and by figure, and the rewards of three variants."""
    cells = []
    common = rng.normal(0, 0.03, rounds)
    for cell in result.cells[:9]:
        block = common + rng.normal(0, 0.03, rounds)
        speed, p50, p95 = np.exp(block + rng.normal(0, 0.01, (3, rounds)))
        made = [
            RoundResult(round=i, requests=9, requests_per_s=10 / speed[i], returned_tokens_per_s=1,
                  p50_e2e_ms=100 * p50[i], p95_e2e_ms=150 * p95[i])
            for i in range(rounds)
        ]  # fmt: skip
        cells.append(cell.model_copy(update={"rounds": made}))
    hard = rng.normal(0, 1, 10)  # a prompt's rewards hang together
    quality = [
        one.model_copy(
            update={"prompt_rewards": dict(zip("0123456789", hard + rng.normal(0, 0.5, 10), strict=True))}
        )
        for one in result.quality[:3]
    ]  # fmt: skip
    return result.model_copy(update={"cells": cells, "quality": quality})


def test_one_doubled_cell_of_nine_is_found_and_named(result: LoadTestResult) -> None:
    rng = np.random.default_rng(5)
    a, b = noisy(result, rng), noisy(result, rng)
    slow = b.cells[4]
    slow.rounds = [
        one.model_copy(
            update={
                "requests_per_s": one.requests_per_s / 2,
                "p50_e2e_ms": 2 * (one.p50_e2e_ms or 0),
                "p95_e2e_ms": 2 * (one.p95_e2e_ms or 0),
            }
        )
        for one in slow.rounds
    ]
    found = compare_runs(a, b)
    speeds = [one for one in found.differences if one.relative]
    assert len(speeds) == 27
    assert [i for i, one in enumerate(speeds) if one.verdict == "worse"] == [12, 13, 14]
    assert all(one.p_adjusted == pytest.approx(2 / 252) for one in speeds[12:15])
    assert not any(one.verdict == "better" for one in found.differences)
    assert found.worse
    assert f"({speeds[12].what}) " in found.statement
    assert "adjusted p 0.0079" in found.statement
    assert "B is worse: 3 of 30 figures" in found.statement


def test_without_change_there_are_no_more_false_alarms_than_the_level(
    result: LoadTestResult,
) -> None:
    """200 pairs of runs: at a rate of .05, more than 21 false alarms have a probability below .001."""
    assert stats.binom.sf(21, 200, 0.05) < 0.001
    rng = np.random.default_rng(11)
    alarms = sum(compare_runs(noisy(result, rng), noisy(result, rng)).differs for _ in range(200))
    assert 0 < alarms <= 21


def test_a_cell_that_answers_nothing_any_more_is_worse(result: LoadTestResult) -> None:
    rng = np.random.default_rng(2)
    a, b = noisy(result, rng), noisy(result, rng)
    dead = {"requests": 0, "requests_per_s": 0.0, "p50_e2e_ms": None, "p95_e2e_ms": None}
    b.cells[0].rounds = [one.model_copy(update=dead) for one in b.cells[0].rounds]
    b.cells[0].requests_per_s = median_range([0.0])
    found = compare_runs(a, b)
    assert found.worse
    (one,) = [d for d in found.differences if d.verdict == "worse"]
    assert (one.measure, one.b) == ("requests/s", 0)
    # An answer in the block would be 10/9 requests/s, half of it against 10 is .056.
    assert one.change == pytest.approx(0.056, rel=0.1)


def test_only_rounds_that_both_runs_have_are_compared(result: LoadTestResult) -> None:
    rng = np.random.default_rng(3)
    a, b = noisy(result, rng, rounds=7), noisy(result, rng)
    for cell in b.cells[3:]:
        cell.rounds = cell.rounds[:4]  # stopped in its last round
    first, *_, last = [one for one in compare_runs(a, b).differences if one.relative]
    for one, i, rounds in ((first, 0, 5), (last, -1, 4)):
        values = [
            [
                r.requests_per_s if one is first else r.p95_e2e_ms
                for r in run.cells[i].rounds[:count]
            ]
            for run, count in ((a, 5), (b, rounds))
        ]
        means = [np.log(np.array(own, dtype=float)).mean() for own in values]
        assert one.change == pytest.approx(np.exp(means[1] - means[0]))
        # Both figures are those of the runs' own reports.
        cells = [run.cells[i] for run in (a, b)]
        assert [one.a, one.b] == [
            cell.requests_per_s.median if one is first else cell.e2e_ms.p95  # type: ignore[union-attr]
            for cell in cells
        ]


def test_an_interval_that_says_nothing_is_left_out(result: LoadTestResult) -> None:
    """Two rounds a run of 1 and 10 requests/s: Welch's interval of the ratio spans many powers of ten."""

    def run() -> LoadTestResult:
        changed = faster(result.model_copy(update={"quality": []}), 1.0, rounds=2)
        for cell in changed.cells:
            for one, rate in zip(cell.rounds, (1.0, 10.0), strict=True):
                one.requests_per_s = rate
        return changed

    logs = np.log([1.0, 10.0])
    ends = welch_interval(logs, logs)
    assert ends is not None
    assert np.exp(ends[1] - ends[0]) > 1e6
    found = compare_runs(run(), run()).differences[0]
    assert (found.measure, found.change) == ("requests/s", pytest.approx(1))
    assert (found.low, found.high) == (None, None)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.0001, "0.000"), (0.0, "0.000"), (-0.25, "-0.250"), (1.2, "+1.200")]
)
def test_a_difference_of_nothing_has_no_sign(value: float, text: str) -> None:
    assert signed(value) == text


def test_joint_permutation_by_hand() -> None:
    """Rows 0, 1 | 2, 3 of two figures with values 0 to 3; |differences| by split (each has a mirror image):

    01|23: 2 and 0 (as seen), 02|13: 1 and 2, 03|12: 0 and 1. The larger of both: 2, 2, 1.
    """
    rows = np.array([[0, 0], [1, 3], [2, 1], [3, 2]]) * np.array([1.0, -100.0]) + 7
    alone, adjusted = joint_permutation(rows[:2], rows[2:])
    assert alone == pytest.approx([1 / 3, 1])
    assert adjusted == pytest.approx([2 / 3, 1])


def test_joint_permutation_is_the_enumerated_step_down() -> None:
    """The reference: Student's t of each split, largest first, each against those that are not larger."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(7, 4)) + np.outer(np.arange(7) > 2, [9.0, 1.0, 0.0, 2.0])

    def t(split: tuple[int, ...]) -> list[float]:
        here = np.isin(np.arange(7), split)
        return [abs(stats.ttest_ind(x[here], x[~here]).statistic) for x in rows.T]

    splits = list(combinations(range(7), 3))
    drawn, seen = [t(one) for one in splits], t((0, 1, 2))
    expected, least = {}, 0.0
    left = sorted(range(4), key=lambda i: -seen[i])
    while left:
        share = np.mean([max(one[i] for i in left) >= seen[left[0]] - 1e-9 for one in drawn])
        least = max(least, float(share))
        expected[left.pop(0)] = least
    alone, adjusted = joint_permutation(rows[:3], rows[3:])
    assert adjusted == pytest.approx([expected[i] for i in range(4)])
    for i in range(4):
        assert alone[i] == pytest.approx(np.mean([one[i] >= seen[i] - 1e-9 for one in drawn]))


def test_joint_permutation_draws_where_there_is_too_much_and_bears_gaps_and_constants() -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(24, 3)) + np.outer(np.arange(24) > 11, [9.0, 0.0, 0.0])
    rows[:, 1] = np.tile([1.0, 1.0, -1.0, -1.0], 6)
    rows[:, 2] = 0.1
    alone, adjusted = joint_permutation(rows[:12], rows[12:])
    assert adjusted[0] == pytest.approx(1 / 10_001)
    assert alone[1:] == pytest.approx([1, 1])
    assert adjusted[1:] == pytest.approx([1, 1])
    rows[14, 0] = np.nan
    rows[13:, 1] = np.nan
    alone, adjusted = joint_permutation(rows[7:12], rows[12:17])
    assert adjusted[0] == pytest.approx(2 / 252)
    assert alone[1] > 0.05


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_welch_interval_is_scipys() -> None:
    a, b = [1.0, 1.2, 0.9, 1.1], [2.0, 2.9, 1.4, 2.2, 3.1]
    known = stats.ttest_ind(b, a, equal_var=False).confidence_interval()
    assert welch_interval(a, b) == pytest.approx((known.low, known.high))
    assert welch_interval([1, 1], [3, 3]) == (2, 2)
    assert welch_interval([1], [3, 4]) is None


def test_rewards_are_compared_on_the_same_prompts_only(result: LoadTestResult) -> None:
    base, other = faster(result, 1.0, 5), faster(result, 1.0, 5, gain=1.0)
    assert any(one.measure == "mean reward" for one in compare_runs(base, other).differences)
    moved = other.model_copy(update={"settings": other.settings | {"prompts": "elsewhere.jsonl"}})
    found = compare_runs(base, moved)
    assert any(one.measure == "mean reward" for one in found.differences)
    assert found.settings_changed == {}
    changed = moved.model_copy(update={"prompts_digest": "other"})
    found = compare_runs(base, changed)
    assert not any(one.measure == "mean reward" for one in found.differences)
    other.settings["prompt_words"] = "20"
    other.prompts_digest = None  # of a version that did not note it
    found = compare_runs(base, other)
    assert not any(one.measure == "mean reward" for one in found.differences)
    assert found.settings_changed == {"prompt_words": (None, "20")}


# Imports take longer than most of what the commands do.
LOADED = (
    "service.loadtest.execute",
    "service.loadtest.report.charts",
    "service.loadtest.report.terminal",
    "service.store",
)


async def command(*arguments: str, cwd: Path, interrupt_after: str = "") -> tuple[int, str]:
    """The real command line; with ``interrupt_after``, Ctrl-C once that was printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    run = partial(
        run_command, cwd=cwd, env=environment, interrupt_after=interrupt_after, loaded=LOADED
    )
    return await asyncio.to_thread(run, ["-m", "service.loadtest", *arguments])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--url", "http://127.0.0.1:1"], 1, "is not ready: not reachable"),
        (["--slo", "nonsense"], 2, "KIND:MS"),
        (["--speed", "9"], 2, "--speed"),
        (["compare", "nothing", "nothing"], 1, "no run with id or tag 'nothing'"),
        (["report", "."], 1, "does not hold a load test"),
        (["schema"], 0, '"schema_version"'),
        (["--help"], 0, "Exit status"),
        (["run", "--help"], 0, "--price-per-hour"),
    ],
)
async def test_exit_status_and_words(
    tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    found, said = await command(*arguments, cwd=tmp_path)
    assert found == status, said
    assert words in said
