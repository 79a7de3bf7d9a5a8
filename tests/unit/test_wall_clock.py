"""A wall clock that jumps: it dates what was made, and measures nothing."""

from __future__ import annotations

import ast
import asyncio
import itertools
import time
from pathlib import Path

import pytest

from service.hosted_loadtests.report_links import VALID_S
from tests.unit.fakes import serving
from tests.unit.test_key_limits import ask, clocked, keyed

ROOT = Path(__file__).resolve().parents[2]
DAY_S = 86_400.0
# Modules that may read the wall clock, and what for. A duration or a time limit is measured by `monotonic`,
# `perf_counter` or the loop's clock, or a jump of the wall clock would end it or make it last for ever.
READERS = {
    "service/distil/keeper.py": "the date of an event, and of a state that is stored",
    "service/distil/submitted.py": "the date of a checkpoint",
    "service/generation/openai_response.py": "`created` of OpenAI's answers",
    "service/auto/tune_runs.py": "the age of a report, which is kept over restarts",
    "service/generation/openai_stream.py": "`created` of OpenAI's answers",
    "service/hosted_loadtests/runs.py": "the date of a load test",
    "service/loadtest/analysis/result.py": "the date of a result",
    "service/loadtest/config.py": "the name of a directory",
    "service/loadtest/load/loops.py": "the date of a block",
    "service/observability/otel_spans.py": "the start of a span, whose end is that plus a duration",
    "service/routes/score.py": "`created` of OpenAI's answers",
    "service/runtime/runtime.py": "`created` of OpenAI's models",
    "service/store/auto.py": "the date of a table",
    "service/store/distil.py": "the date of a rollout's state",
    "service/store/preferences.py": "the date of a preference",
    "service/store/tune.py": "the date of a report",
    "service/tune/config.py": "the name of a directory",
    "service/tune/reporting.py": "the date of a run",
    "vbon/distil/directory.py": "the age of answers, which is kept over restarts",
    "vbon/distil/loop/run.py": "an estimate of when a round begins, which is only shown",
    "vbon/measured/table.py": "the date of a table",
    "vbon/storage/provenance.py": "the date of an output",
    "vbon/tuning/sole_search.py": "the end of a lease, which processes of several machines compare",
}
WALL = {
    *(("time", name) for name in ("time", "time_ns")),
    *(("datetime", name) for name in ("now", "utcnow", "today")),
    ("date", "today"),
}


def reads_the_wall_clock(source: str) -> bool:
    """True if a module names a function that tells the date, as an attribute or by importing it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            named = {(node.value.id, node.attr)}
        elif isinstance(node, ast.ImportFrom):
            named = {(node.module or "", one.name) for one in node.names}
        else:
            continue
        if named & WALL:
            return True
    return False


def test_what_reads_the_wall_clock_only_dates_things() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("service", "vbon")
        for path in (ROOT / folder).rglob("*.py")
        if reads_the_wall_clock(path.read_text(encoding="utf-8"))
    }
    assert found <= READERS.keys(), (
        "measure durations with `monotonic`, or name the module in READERS"
    )


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("import time\nbegun = time.time()", True),
        ("from time import time_ns", True),
        ("from datetime import datetime\nnow = datetime.now()", True),
        ("import time\nbegun = time.monotonic()", False),
        ("from time import perf_counter", False),
        ("loop.time()", False),
    ],
)
def test_readings_are_found(source: str, reads: bool) -> None:
    assert reads_the_wall_clock(source) is reads


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the wall clock is a day before or after the one before."""
    read, days = time.time, itertools.cycle((0, 1, 0, -1))
    monkeypatch.setattr(time, "time", lambda: read() + next(days) * DAY_S)
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))


@pytest.mark.usefixtures("jumping")
@clocked
async def test_a_key_s_minute_is_sixty_seconds_whatever_the_date(tmp_path: Path) -> None:
    runtime, tokens = keyed(tmp_path, {}, ann={"tokens_per_minute": 16})
    async with serving(runtime) as (_, client):
        told = [await ask(client, tokens["ann"]) for _ in range(3)]
        assert [one.status_code for one in told] == [200, 200, 429]
        assert 0 < int(told[-1].headers["retry-after"]) <= 60
        await asyncio.sleep(60)
        told = [await ask(client, tokens["ann"]) for _ in range(3)]
        assert [one.status_code for one in told] == [200, 200, 429]


@pytest.mark.usefixtures("jumping")
@clocked
async def test_requests_and_links_last_as_long_as_ever(tmp_path: Path) -> None:
    runtime, tokens = keyed(tmp_path, {"timeout_s": 1.0, "max_queue_s": 5.0}, ann={})
    async with serving(runtime) as (app, client):
        assert (await ask(client, tokens["ann"], "bon", n=4)).status_code == 200
        late = await ask(client, tokens["ann"], max_tokens=200, timeout_s=0.1)
        assert late.status_code == 504
        links = app.state.report_links
        secret = links.make("run", "ann")
        await asyncio.sleep(VALID_S - 1)
        assert links.run_of(secret) == "run"
