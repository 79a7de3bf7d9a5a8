"""The load test returns what a server of known latencies does.

Client and server run under a virtual clock, so that seconds of load take as long as their requests need.
Sleeps are never shorter than asked, so lower bounds are exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.loadtest.analysis.result import build_result
from service.loadtest.config import LoadTestSettings
from service.loadtest.journal import Journal
from service.loadtest.load.load_test import LoadTest
from service.loadtest.load.server_description import choose_variants
from service.loadtest.observation import BlockRecord, Observation
from service.loadtest.report.write import html_page
from service.loadtest.schema import CellResult, LoadTestResult, ServerDescription
from tests.unit.slow_server import SlowServer, listening
from tests.unit.virtual_clock import virtually
from vbon.prompts import Prompt

CLOCKED = ("service.loadtest", "tests.unit.slow_server")
SLACK_MS = 60.0  # a scheduler's delay on a machine that does something else as well
PROMPTS = [Prompt(text=text) for text in ("one", "two", "three")]


class Quiet:
    """Progress that shows nothing and remembers everything."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.plans: list[tuple[int, int, float | None]] = []
        self.steps: list[tuple[str, float | None, float | None]] = []
        self.notes: list[str] = []

    def planned(self, blocks: int, done: int, left_s: float | None) -> None:
        self.plans.append((blocks, done, left_s))

    def begin(self, what: str, seconds: float | None, left_s: float | None = None) -> None:
        self.steps.append((what, seconds, left_s))

    def seen(self, observation: Observation) -> None:
        pass

    def scored(self) -> None:
        pass

    def finished(self, record: BlockRecord) -> None:
        self.blocks.append(record.key)

    def note(self, text: str) -> None:
        self.notes.append(text)


def settings_for(server: SlowServer, out: Path, **changes: Any) -> LoadTestSettings:
    values: dict[str, Any] = {
        "url": server.url, "out": out, "modes": ["ref"], "n": [4], "concurrency": [4], "rounds": 1,
        "duration_s": 0.8, "warmup_s": 0.2, "quality_prompts": 0, "store": None,
    }  # fmt: skip
    return LoadTestSettings(**{**values, **changes})


async def measure(
    server: SlowServer, out: Path, progress: Quiet | None = None, **changes: Any
) -> LoadTestResult:
    settings = settings_for(server, out, **changes)
    told = ServerDescription.model_validate(
        {"url": server.url, "api": settings.api, "modes": _modes(server, settings.api)}
    )
    variants = choose_variants(settings, told)
    journal = Journal.begin(settings, told.model_dump(mode="json"))
    await LoadTest(settings, variants, PROMPTS, journal, progress or Quiet(), told).run()
    return build_result(settings, told, variants, PROMPTS, journal)


def _modes(server: SlowServer, api: str) -> list[dict[str, Any]]:
    if api == "openai":
        return [{"name": "ref", "reranks": False}]
    return [
        {"name": m["name"], "reranks": m["reward_model"] is not None, "policy": m["policy"],
         "training": m["training"]}
        for m in server.modes()["modes"]
    ]  # fmt: skip


def only(result: LoadTestResult) -> CellResult:
    assert len(result.cells) == 1
    return result.cells[0]


@pytest.mark.parametrize("api", ["native", "openai"])
@virtually(*CLOCKED)
async def test_streamed_latencies_are_the_servers(tmp_path: Path, api: str) -> None:
    async with listening(SlowServer(first_s=0.05, gap_s=0.02, tokens=6)) as server:
        cell = only(await measure(server, tmp_path, api=api, stream=True))
    assert cell.e2e_ms and cell.ttft_ms and cell.tpot_ms and cell.itl_ms  # noqa: PT018
    assert 150 <= cell.e2e_ms.p50 < 150 + SLACK_MS
    assert 50 <= cell.ttft_ms.p50 < 50 + SLACK_MS
    assert cell.tpot_ms.p50 == pytest.approx(20, abs=8)
    assert cell.itl_ms.p50 == pytest.approx(20, abs=8)
    assert cell.itl_ms.count == 5 * cell.requests
    # Little's law: so many in flight, each for so long.
    expected = 4 / (cell.e2e_ms.mean / 1e3)
    assert cell.requests_per_s.median == pytest.approx(expected, rel=0.1)
    assert cell.returned_tokens_per_s.median == pytest.approx(6 * expected, rel=0.1)


@virtually(*CLOCKED)
async def test_answers_in_one_piece_have_no_token_times_and_count_discarded_tokens(
    tmp_path: Path,
) -> None:
    async with listening(SlowServer(first_s=0.05, tokens=5)) as server:
        cell = only(await measure(server, tmp_path, modes=["bon"]))
    assert cell.e2e_ms is not None
    assert cell.ttft_ms == cell.e2e_ms
    assert cell.tpot_ms is None
    assert cell.itl_ms is None
    assert 90 <= cell.e2e_ms.p50 < 90 + SLACK_MS
    assert cell.generated_tokens_per_s.median == pytest.approx(
        4 * cell.returned_tokens_per_s.median
    )
    assert cell.queue_ms is not None
    assert cell.rerank_ms is not None
    assert (cell.queue_ms.p50, cell.rerank_ms.p50) == (1.0, 3.0)


@virtually(*CLOCKED)
async def test_a_number_of_requests_is_kept_to(tmp_path: Path) -> None:
    async with listening(SlowServer(first_s=0.01, tokens=1)) as server:
        result = await measure(server, tmp_path, requests=17, warmup_s=0.05, concurrency=[3])
    assert only(result).requests == 17


@pytest.mark.parametrize(("lead", "counted"), [({"warmup_s": 0.0}, 41), ({"warmup_s": 1.0}, 21)])
@virtually(*CLOCKED)
async def test_the_lead_in_is_left_out(
    tmp_path: Path, lead: dict[str, float], counted: int
) -> None:
    """Due times are known: at a constant 20/s they are 0.05, 0.10, ... within the window."""
    async with listening(SlowServer(first_s=0.005, tokens=1)) as server:
        result = await measure(
            server, tmp_path, concurrency=[], rate=[20], arrival="constant",
            duration_s=2.02 - lead["warmup_s"], **lead,
        )  # fmt: skip
    assert only(result).requests == pytest.approx(counted, abs=1)


@virtually(*CLOCKED)
async def test_errors_are_counted_by_kind_and_kept_out_of_everything_else(tmp_path: Path) -> None:
    async with listening(SlowServer(first_s=0.01, tokens=1, fail_every=4)) as server:
        cell = only(await measure(server, tmp_path, slo=["e2e:5000"]))
    failed = cell.errors["HTTP 429 overloaded"]
    assert set(cell.errors) == {"HTTP 429 overloaded"}
    assert failed == pytest.approx((failed + cell.requests) / 4, abs=2)
    assert cell.e2e_ms is not None
    assert cell.e2e_ms.count == cell.requests
    assert cell.e2e_ms.p50 >= 10
    assert cell.goodput_share == pytest.approx(cell.requests / (failed + cell.requests))


@virtually(*CLOCKED)
async def test_what_takes_too_long_is_a_timeout(tmp_path: Path) -> None:
    async with listening(SlowServer(first_s=0.5, tokens=1)) as server:
        cell = only(await measure(server, tmp_path, timeout_s=0.1))
    assert set(cell.errors) == {"timeout"}
    assert cell.e2e_ms is None
    assert cell.requests_per_s.median == 0


@virtually(*CLOCKED)
async def test_a_server_that_is_gone_is_told_by_kind(tmp_path: Path) -> None:
    async with listening(SlowServer()) as server:
        pass
    cell = only(await measure(server, tmp_path, duration_s=0.1, warmup_s=0, concurrency=[1]))
    assert set(cell.errors) == {"cannot connect"}


@virtually(*CLOCKED)
async def test_goodput_counts_answers_within_every_slo(tmp_path: Path) -> None:
    async with listening(SlowServer(first_s=0.05, gap_s=0.02, tokens=6)) as server:
        easy = only(await measure(server, tmp_path / "a", slo=["e2e:2000", "ttft:1000"]))
        hard = only(await measure(server, tmp_path / "b", slo=["e2e:2000", "ttft:49"], stream=True))
    assert easy.goodput_share == 1
    assert easy.goodput_per_s == easy.requests_per_s
    assert hard.goodput_share == 0
    assert hard.goodput_per_s is not None
    assert hard.goodput_per_s.median == 0


@virtually(*CLOCKED)
async def test_an_open_loop_shows_a_stall_that_a_closed_one_hides(tmp_path: Path) -> None:
    """The server stalls for 1 s of 3, so at 40/s a third of the requests wait for it."""
    stalled = {"first_s": 0.005, "tokens": 1, "stall": 1.0, "stall_s": 1.0}
    async with listening(SlowServer(**stalled)) as server:  # type: ignore[arg-type]
        opened = only(
            await measure(server, tmp_path / "open", concurrency=[], rate=[40], duration_s=3,
                          warmup_s=0, arrival="constant")
        )  # fmt: skip
    async with listening(SlowServer(**stalled)) as server:  # type: ignore[arg-type]
        closed = only(
            await measure(server, tmp_path / "closed", concurrency=[1], duration_s=3, warmup_s=0)
        )
    assert opened.e2e_ms is not None
    assert closed.e2e_ms is not None
    assert opened.e2e_ms.p90 > 500
    assert 120 < opened.e2e_ms.mean < 400
    assert closed.e2e_ms.p90 < 200  # one request of hundreds met the stall


@virtually(*CLOCKED)
async def test_waiting_for_a_connection_counts_as_latency(tmp_path: Path) -> None:
    """One connection and 50 ms per answer at 40 requests/s: only half can be sent in time."""
    async with listening(SlowServer(first_s=0.05, tokens=1)) as server:
        cell = only(
            await measure(server, tmp_path, concurrency=[], rate=[40], arrival="constant",
                          max_in_flight=1, duration_s=1.0, warmup_s=0)
        )  # fmt: skip
    assert cell.e2e_ms is not None
    assert cell.send_lag_ms is not None
    assert cell.e2e_ms.p95 > 700
    assert cell.send_lag_ms.p95 > 650


@virtually(*CLOCKED)
async def test_cells_take_turns(tmp_path: Path) -> None:
    quiet = Quiet()
    async with listening(SlowServer(first_s=0.005, tokens=1)) as server:
        result = await measure(
            server, tmp_path, quiet, modes=["ref", "bon"], rounds=2, concurrency=[1, 2],
            duration_s=0.1, warmup_s=0,
        )  # fmt: skip
    one = [f"{who}, {many} in flight" for many in (1, 2) for who in ("ref", "bon (N=4)")]
    there = [f"{cell}, round 0" for cell in one]
    back = [f"{cell}, round 1" for cell in reversed(one)]
    assert quiet.blocks == [*there, *back]
    assert result.complete
    assert [len(cell.rounds) for cell in result.cells] == [2] * 4


@virtually(*CLOCKED)
async def test_rewards_are_scored_off_the_clock_and_paired(tmp_path: Path) -> None:
    async with listening(SlowServer(first_s=0.005, tokens=1)) as server:
        result = await measure(
            server, tmp_path, modes=["ref", "bon", "vbon"], n=[2, 4], quality_prompts=3,
            quality_samples=2, duration_s=0.1, warmup_s=0,
        )  # fmt: skip
    timed = [body for mode, body in server.asked if mode == "vbon" and "seed" not in body]
    assert timed
    assert all(body["score"] is False for body in timed)
    quality = {one.variant: one for one in result.quality}
    # Best-of-N's candidates are 0, 1, 2, 3: the best of all is 3, of two 5/3 on average.
    assert quality["bon (N=4)"].reward is not None
    assert quality["bon (N=4)"].reward.mean == 3
    assert quality["bon (N=2)"].reward is not None
    # Every pair is as likely: 0-1, 0-2, 0-3, 1-2, 1-3, 2-3.
    assert quality["bon (N=2)"].reward.mean == pytest.approx((1 + 2 + 3 + 2 + 3 + 3) / 6)
    assert quality["bon (N=2)"].answers == 2 * quality["bon (N=4)"].answers == 12
    # Against ref's 0: the best of every pair is above it.
    win_rate = quality["bon (N=2)"].win_rate
    assert win_rate is not None
    assert win_rate.mean == pytest.approx(1.0)
    assert quality["ref"].win_rate is None
    assert [point.reward.mean for point in result.curve] == pytest.approx([1.5, 7 / 3, 2.75, 3])
    seeds = [(mode, body["prompt"], body["seed"]) for mode, body in server.asked if "seed" in body]
    assert len({seed for _, _, seed in seeds}) == len(seeds) == 3 * 3 * 2


@virtually(*CLOCKED)
async def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    async with listening(SlowServer(first_s=0.005, tokens=1)) as server:
        changes = {"rounds": 3, "duration_s": 0.1, "warmup_s": 0.0}
        whole = await measure(server, tmp_path, **changes)
        path = tmp_path / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])  # killed while the last was written
        quiet = Quiet()
        again = await measure(server, tmp_path, quiet, **changes)
    assert quiet.blocks == ["ref, 4 in flight, round 2"]
    assert again.complete
    assert only(again).rounds[:2] == only(whole).rounds[:2]


@virtually(*CLOCKED)
async def test_another_run_is_not_continued(tmp_path: Path) -> None:
    from vbon.errors import DataError

    async with listening(SlowServer(first_s=0.005, tokens=1)) as server:
        await measure(server, tmp_path, duration_s=0.1, warmup_s=0)
        with pytest.raises(DataError, match=r"other settings \(max_tokens\)"):
            await measure(server, tmp_path, duration_s=0.1, warmup_s=0, max_tokens=7)
        more = await measure(
            server, tmp_path, duration_s=0.1, warmup_s=0, rounds=2, price_per_hour=9
        )
    assert more.blocks_done == 2


@virtually(*CLOCKED)
async def test_saturate_finds_the_capacity(tmp_path: Path) -> None:
    """4 slots of 50 ms serve 80/s; at a constant rate below that, no request waits."""
    async with listening(SlowServer(first_s=0.05, tokens=1, slots=4)) as server:
        result = await measure(
            server, tmp_path, saturate=True, slo=["e2e:250"], concurrency=[], arrival="constant",
            saturate_duration_s=2.5, saturate_tolerance=0.15, warmup_s=0.3, rounds=2, duration_s=2.5,
        )  # fmt: skip
    found = result.saturation[0]
    assert found.rate is not None
    assert found.above is not None
    # What a busy machine adds to 50 ms lowers the capacity; nothing raises it but the probe's length,
    # in which a backlog of (rate - 80) * 2.5 s has to reach 200 ms: at 87/s it does.
    assert 45 < found.rate <= 92
    assert found.above <= found.rate * 1.15 + 1e-9
    assert result.complete
    assert result.costs[0].requests_per_s.median == pytest.approx(found.rate, rel=0.06)
    page = html_page(result)
    assert "Saturation</h3>" in page
    # The rate found is measured in rounds, which give it a range.
    (cell,) = result.cells
    assert (cell.load_kind, cell.load, len(cell.rounds)) == ("open", found.rate, 2)
    assert result.blocks_done == result.blocks_planned == 2
    assert result.costs[0].requests_per_s.count == 2


@virtually(*CLOCKED)
async def test_a_mode_too_slow_when_idle_is_not_searched(tmp_path: Path) -> None:
    async with listening(SlowServer(first_s=0.05, tokens=1)) as server:
        result = await measure(
            server,
            tmp_path,
            saturate=True,
            slo=["e2e:10"],
            concurrency=[],
            rate=[5],
            duration_s=0.2,
        )
    assert result.saturation[0].rate is None
    assert result.saturation[0].probes == []
    assert "misses 10 ms even when idle" in result.decision[-1]
