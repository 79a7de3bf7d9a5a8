"""Load levels and blocks that a calibration chooses, and the verdict that default settings reach."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from service.loadtest.analysis.calibration import (
    FLAT,
    Climb,
    calibrated,
    full_at,
    in_flight,
    planned_s,
)
from service.loadtest.analysis.full_load import load_remedy
from service.loadtest.analysis.result import build_result
from service.loadtest.config import LoadTestSettings
from service.loadtest.defaults import settled
from service.loadtest.execute import _with_given_levels
from service.loadtest.journal import Journal
from service.loadtest.load.announcements import beforehand, calibration_words
from service.loadtest.load.load_test import LoadTest
from service.loadtest.load.server_description import choose_variants
from service.loadtest.plan import Variant, planned_blocks
from service.loadtest.report.tables import quality_table, settings_table, summary_table
from service.loadtest.schema import Calibration, LoadTestResult, ServerDescription
from tests.unit.slow_server import SlowServer, listening
from tests.unit.test_loadtest import CLOCKED, Quiet, _modes, settings_for
from tests.unit.virtual_clock import virtually
from vbon.errors import DataError
from vbon.prompts import Prompt

REF, VBON = Variant("ref"), Variant("vbon")
BON = Variant("bon", 16, True)


def climbed(
    rates: dict[str, dict[int, float]], variants: list[Variant], full: int = 512
) -> tuple[list[int], Climb]:
    """The levels probed on a server whose throughput by level is known, and the whole climb."""
    idle = {v.label: 1 / rates[v.label][1] for v in variants}
    climb, levels = Climb(variants, full, idle), []
    while (level := climb.next_level()) is not None:
        levels.append(level)
        climb.measured[level] = {
            v.label: (rates[v.label][level], in_flight(v, level) / rates[v.label][level])
            for v in variants
        }
        assert len(levels) < 20
    return levels, climb


def server_of(tokens_per_s: float, variants: list[Variant], knee: int) -> dict[str, Any]:
    """Throughput by level of a server that is saturated from ``knee`` sequences on; 1: by itself."""
    levels = [1, *(2**k for k in range(1, 14))]
    return {
        v.label: {s: tokens_per_s / 40 / v.n * min(1.0, max(s, v.n) / knee) for s in levels}
        for v in variants
    }


def levels_of(calibration: Calibration) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for cell in calibration.cells:
        found.setdefault(cell.variant, []).append(cell.in_flight)
    return found


def test_a_quick_server_is_driven_until_its_engines_are_full() -> None:
    """16,000 tokens/s, saturated at 128 sequences: all answers are quick, so the climb ends at 512."""
    variants = [REF, BON, VBON]
    levels, climb = climbed(server_of(16_000, variants, 128), variants)
    assert levels == [32, 128, 512]
    found = calibrated(climb, LoadTestSettings(max_s=1000))
    assert levels_of(found) == {
        "ref": [1, 512, 1024],
        "bon (N=16)": [1, 32, 64],
        "vbon": [1, 512, 1024],
    }
    assert found.flat
    # At 64 in flight an answer of 25 requests/s takes 64/25 s: the lead is one, the block 3 of them.
    last = found.cells[7]
    assert (last.variant, last.warmup_s, last.duration_s) == ("bon (N=16)", 2.6, 7.7)
    assert last.expected_s == pytest.approx(2.6 + 7.7 + 2.56)
    order = [cell.variant for cell in found.cells]
    assert order == ["ref", "bon (N=16)", "vbon"] * 3


def test_a_slow_server_is_driven_no_further_than_its_plateau() -> None:
    """160 tokens/s, saturated at 64 sequences: an answer takes 16 s there, so the climb stops after it."""
    variants = [BON, VBON]
    levels, climb = climbed(server_of(160, variants, 64), variants)
    assert levels == [32, 64, 128]
    found = calibrated(climb, LoadTestSettings())
    assert levels_of(found) == {"bon (N=16)": [1, 4, 8], "vbon": [1, 64, 128]}
    assert found.flat
    for cell in found.cells:
        seconds = cell.expected_s - cell.warmup_s - cell.duration_s
        assert cell.duration_s >= 2.5 * seconds - 1e-9, "whole answers come before the time limit"
        assert cell.warmup_s >= seconds - 1e-9


def test_the_slowest_to_saturate_decides_for_all() -> None:
    slow = server_of(160, [REF], 256)
    rates = server_of(160, [BON], 32) | slow
    levels, climb = climbed(rates, [BON, REF], full=1024)
    assert levels[-1] == 512
    assert climb.knee() == 256
    assert levels_of(calibrated(climb, LoadTestSettings()))["bon (N=16)"] == [1, 16, 32]


def test_without_a_plateau_below_the_limit_it_says_so() -> None:
    """max_in_flight 16 allows 8 in flight at the lower level, where twice the load is twice the speed."""
    variants = [VBON]
    settings = LoadTestSettings(max_in_flight=16)
    full = full_at(settings, None)
    assert full == 8
    _, climb = climbed(server_of(160, variants, 4096), variants, full=full)
    found = calibrated(climb, settings)
    assert levels_of(found) == {"vbon": [1, 8, 16]}


@pytest.mark.parametrize(
    ("told", "settings", "full"),
    [
        (None, {}, 256),
        ({"running_sequences": 512, "waiting_sequences": 2048}, {}, 512),
        ({"running_sequences": 512, "waiting_sequences": 100}, {}, 306),
        ({"running_sequences": 2048, "waiting_sequences": 9000}, {}, 512),
        ({"running_sequences": 512, "waiting_sequences": 2048}, {"max_in_flight": 64}, 32),
    ],
)
def test_levels_stay_where_no_request_is_refused(
    told: dict[str, int] | None, settings: dict[str, int], full: int
) -> None:
    server = (
        None if told is None else ServerDescription(url="http://x", api="native", modes=[], **told)  # type: ignore[arg-type]
    )
    assert full_at(LoadTestSettings(**settings), server) == full  # type: ignore[arg-type]


def test_blocks_are_shortened_to_the_time_allowed_but_not_below_whole_answers() -> None:
    variants = [REF, BON, VBON]
    _, climb = climbed(server_of(16_000, variants, 128), variants)
    long, short = (
        calibrated(climb, LoadTestSettings(max_s=limit, rounds=5)) for limit in (1000.0, 60.0)
    )
    fitting = calibrated(climb, LoadTestSettings(max_s=planned_s(long, 5) - 15, rounds=5))
    assert planned_s(long, 5) - 30 < planned_s(fitting, 5) <= planned_s(long, 5) - 10
    assert 60 < planned_s(short, 5) < planned_s(fitting, 5)
    for cell in short.cells:
        seconds = cell.expected_s - cell.warmup_s - cell.duration_s
        assert cell.duration_s >= 2.5 * seconds - 1e-9


def test_lengths_that_are_given_are_kept() -> None:
    _, climb = climbed(server_of(16_000, [BON], 128), [BON])
    found = calibrated(climb, LoadTestSettings(duration_s=9, warmup_s=0))
    assert {(cell.warmup_s, cell.duration_s) for cell in found.cells} == {(0, 9)}


def test_noise_of_some_percent_does_not_look_like_a_plateau_of_a_steep_climb() -> None:
    climb = Climb([VBON], 4096, {"vbon": 1.0})
    climb.measured = {32: {"vbon": (10.0, 3.2)}, 64: {"vbon": (10.0 * FLAT + 0.1, 6.0)}}
    assert climb.knee() is None
    climb.measured[128] = {"vbon": (10.0 * FLAT + 0.2, 12.0)}
    assert climb.knee() == 64


# What the defaults are


def test_defaults_are_the_servers_and_given_levels_have_given_lengths() -> None:
    server = ServerDescription(
        url="http://x",
        api="native",
        modes=[],
        default_sampling={"max_tokens": 77, "temperature": 0.0},
    )
    found = settled(LoadTestSettings(), server, [REF, BON])
    assert (found.max_tokens, found.temperature, found.stream) == (77, 0.0, False)
    assert (found.duration_s, found.warmup_s) == (None, None)
    found = settled(LoadTestSettings(concurrency=[4]), None, [REF])
    assert (found.max_tokens, found.temperature, found.stream) == (40, 1.0, True)
    assert (found.duration_s, found.warmup_s) == (5.0, 1.0)
    own = LoadTestSettings(max_tokens=5, temperature=0.0, stream=True, warmup_s=0.0, rate=[1])
    found = settled(own, server, [BON])
    assert (found.max_tokens, found.temperature, found.stream) == (5, 0.0, True)
    assert (found.duration_s, found.warmup_s) == (5.0, 0.0)


def test_runs_of_earlier_versions_keep_the_levels_that_were_their_default() -> None:
    assert _with_given_levels({"rounds": 5})["concurrency"] == [1, 8, 32]
    assert _with_given_levels({"rounds": 5, "rate": [2]}) == {"rounds": 5, "rate": [2]}
    assert "concurrency" not in _with_given_levels({"max_s": 300})


# Whole runs


async def default_run(
    server: SlowServer, out: Path, progress: Quiet, **changes: Any
) -> LoadTestResult:
    """A load test with the default settings but for N; it is known what the server tells."""
    settings = settings_for(
        server,
        out,
        **{
            "modes": ["ref", "bon", "vbon"],
            "concurrency": [],
            "rounds": LoadTestSettings().rounds,
            "duration_s": None,
            "warmup_s": None,
            "quality_prompts": 64,
            **changes,
        },
    )
    told = ServerDescription.model_validate(
        {
            "url": server.url,
            "api": "native",
            "modes": _modes(server, "native"),
            "running_sequences": 8,
            "waiting_sequences": 64,
        }
    )
    variants, prompts = (
        choose_variants(settings, told),
        [Prompt(text=f"prompt {i}") for i in range(12)],
    )
    journal = Journal.begin(settings, told.model_dump(mode="json"))
    await LoadTest(settings, variants, prompts, journal, progress, told).run()
    return build_result(settings, told, variants, prompts, journal)


TRAINING = {
    "objective": "vbon",
    "cost": {"training_seconds": 36.0, "processes": 1},
    "cache": {"prompts": 4, "samples_per_prompt": 9, "sampling_seconds": 12.0},
}


@virtually(*CLOCKED)
async def test_default_settings_decide(tmp_path: Path) -> None:
    """8 slots of .5 s give 16 single answers/s or 4 of best-of-4: a price ratio of 4.

    vBoN has a reward of 1.6 on every prompt. Best-of-n of candidates 0 to 3 has 1.5 at n = 1 and 7/3 at
    n = 2, so the reward is that of n = 1.12, at which an answer costs 1.12 of vBoN's.
    """
    progress = Quiet()
    rewards = {"ref": 0.5, "vbon": 1.6, "bon": 0.0}
    server = SlowServer(
        first_s=0.5, tokens=1, slots=8, weighs=True, training=TRAINING, rewards=rewards
    )
    async with listening(server):
        result = await default_run(server, tmp_path, progress)
    (pair,) = result.break_even
    assert (pair.state, pair.reasons) == ("decided", [])
    assert pair.cost_ratio.median == pytest.approx(4, rel=0.1)
    assert pair.training_cost == pytest.approx(48 / 3600)
    assert pair.equal_n == pytest.approx(1 + (1.6 - 1.5) / (7 / 3 - 1.5))
    assert not any(cell.streamed for cell in result.cells)
    assert result.calibration is not None
    assert levels_of(result.calibration) == {
        "ref": [1, 8, 16],
        "bon (N=4)": [1, 2, 4],
        "vbon": [1, 8, 16],
    }
    facts = {row[0]: row[1] for row in settings_table(result).rows}
    assert facts["calibrated levels"].startswith("ref 1 (2.5 s), 8 (2.5 s), 16 (")
    assert "bon (N=4) at 2 in flight: 4 requests/s" in facts["probes of the calibration"]
    assert result.complete
    assert result.warnings == [w for w in result.warnings if "p99" in w]
    # The time is told before the blocks, and what is left of it shrinks to nothing.
    assert progress.notes[0].startswith("First a calibration")
    assert progress.notes[1] == (
        "Requests in flight: ref 1, 8, 16; bon (N=4) 1, 2, 4; vbon 1, 8, 16."
    )
    ((blocks, done, seconds),) = progress.plans
    assert (blocks, done) == (45, 0)
    assert seconds == pytest.approx(planned_s(result.calibration, 5))
    left = [one for _, _, one in progress.steps if one is not None]
    assert left[0] == seconds
    assert left == sorted(left, reverse=True)
    assert left[-1] == pytest.approx(result.calibration.cells[-1].expected_s)


@virtually(*CLOCKED)
async def test_a_run_that_is_continued_keeps_its_calibration(tmp_path: Path) -> None:
    server = SlowServer(first_s=0.1, tokens=1, slots=8)
    changes = {"modes": ["ref"], "rounds": 2, "quality_prompts": 0}
    async with listening(server):
        whole = await default_run(server, tmp_path, Quiet(), **changes)
        path = tmp_path / "journal.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
        quiet = Quiet()
        again = await default_run(server, tmp_path, quiet, **changes)
    assert len(quiet.blocks) == 1
    assert quiet.plans[0][:2] == (6, 5)
    assert again.calibration == whole.calibration
    assert again.complete


@virtually(*CLOCKED)
async def test_a_calibrated_run_that_was_interrupted_says_to_go_on(tmp_path: Path) -> None:
    """Its first block is that of one request in flight, whose price is only an upper bound."""
    server = SlowServer(first_s=0.1, tokens=1, slots=8)
    async with listening(server):
        whole = await default_run(
            server, tmp_path, Quiet(), modes=["ref"], rounds=1, quality_prompts=0
        )
        path = tmp_path / "journal.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
        settings = LoadTestSettings.model_validate(whole.settings)
        journal, _ = Journal.reopen(tmp_path)
    result = build_result(settings, whole.server, [REF], [Prompt(text="a")], journal)
    assert (result.blocks_done, result.costs[0].rising) == (1, True)
    (warning,) = [one for one in result.warnings if "fully loaded" in one]
    assert warning == (
        "ref was not fully loaded: it was measured at one load level only (at 1 in flight), so its true cost "
        "is lower. The run ended before its higher load levels were measured; the same command again "
        "measures the rest."
    )
    for table in (summary_table(result), quality_table(result)):
        assert any("at most" in text for text in table.rows[0])
        assert "At most: not fully loaded (ref at 1 in flight)" in table.caption
    assert (
        "(it was not fully loaded at 1 in flight, so the true price is lower)" in result.decision[0]
    )
    for table in (summary_table(whole), quality_table(whole)):
        assert "At most" not in table.caption


@pytest.mark.parametrize(
    ("settings", "flat", "reached", "said"),
    [
        ({}, True, False, "the same command again"),
        ({"concurrency": [1, 8]}, None, False, "the same command again"),
        ({"concurrency": [1, 8]}, None, True, "leave out --concurrency"),
        ({"rate": [2.0]}, None, True, "leave out --rate"),
        ({"concurrency": [8], "rate": [2.0]}, None, True, "leave out --concurrency and --rate"),
        ({"max_in_flight": 64}, False, True, "--max-in-flight, now 64"),
        ({}, True, True, "more rounds (--rounds)"),
    ],
)
def test_the_remedy_names_only_flags_that_were_given(
    settings: dict[str, Any], flat: bool | None, reached: bool, said: str
) -> None:
    calibration = None if flat is None else Calibration(probes=[], cells=[], flat=flat)
    found = load_remedy(LoadTestSettings(**settings), calibration, reached=reached)
    assert said in found
    for flag in ("concurrency", "rate"):
        assert not (f"leave out --{flag}" in found and flag not in settings)


def test_time_beyond_the_limit_is_told_with_the_reason() -> None:
    """Blocks of at least 2.5 answers may need longer than ``max_s``, which is then not a promise."""
    variants = [REF, BON, VBON]
    _, climb = climbed(server_of(16_000, variants, 128), variants)

    def told(**changes: Any) -> list[str]:
        settings = LoadTestSettings(**changes)
        return list(calibration_words(calibrated(climb, settings), settings))

    assert len(told(max_s=1000.0)) == 1
    _, reason = told(max_s=15.0)
    assert re.match(
        r"All blocks need .*, longer than the 15 seconds of --max-s, because a block has to", reason
    )
    _, given = told(max_s=15.0, duration_s=9.0)
    assert given.startswith("Blocks of 9 seconds (--duration-s) need")
    assert "15 seconds (--max-s), or longer" in beforehand(LoadTestSettings(max_s=15.0))


@virtually(*CLOCKED)
async def test_one_stopped_before_its_levels_are_known_is_not_complete(tmp_path: Path) -> None:
    server = SlowServer(first_s=0.1, tokens=1, slots=8)
    async with listening(server):
        await default_run(server, tmp_path, Quiet(), modes=["ref"], rounds=1, quality_prompts=0)
        path = tmp_path / "journal.jsonl"
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        settings = settings_for(server, tmp_path, concurrency=[], duration_s=None, warmup_s=None)
        told = ServerDescription.model_validate(
            {"url": server.url, "api": "native", "modes": _modes(server, "native")}
        )
        journal, _ = Journal.reopen(tmp_path)
    result = build_result(settings, told, [REF], [Prompt(text="a")], journal)
    assert not result.complete
    assert planned_blocks(settings, [REF]) == []


@virtually(*CLOCKED)
async def test_more_time_than_a_server_allows_is_told_with_the_remedy(tmp_path: Path) -> None:
    server = SlowServer(first_s=0.5, tokens=1, slots=8)
    async with listening(server):
        with pytest.raises(DataError, match=r"the blocks need .* allows 20 seconds .*fewer modes"):
            await default_run(server, tmp_path, Quiet(), limit_s=20.0)
