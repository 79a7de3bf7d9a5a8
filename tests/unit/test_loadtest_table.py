"""A load test's result as a table of measured settings, against the real application with fake models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.loadtest.__main__ import cli
from service.loadtest.analysis.intervals import percentile_interval
from service.loadtest.analysis.table import measured_table
from service.loadtest.schema import LoadTestResult
from tests.unit.fakes import FakeReward, make_runtime, serving
from tests.unit.measured import as_json
from tests.unit.test_loadtest_service import clocked, measure, slow_engines
from vbon.errors import DataError
from vbon.measured.table import read_table


@clocked
async def _result(out: Path) -> LoadTestResult:
    runtime = make_runtime(engines=slow_engines(), gold=FakeReward())
    return await measure(out, runtime, concurrency=[1, 3], modes=["ref", "vbon", "bon", "bon@vbon"])


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> LoadTestResult:
    return _result(tmp_path_factory.mktemp("table"))


async def test_every_variant_is_a_row_that_the_server_can_use(result: LoadTestResult) -> None:
    found = measured_table(result)
    rows = {(row.mode, row.policy, row.n): row for row in found.rows}
    assert set(rows) == {
        ("ref", "ref", 1), ("vbon", "vbon", 1), ("bon", "ref", 2), ("bon", "ref", 4),
        ("bon", "vbon", 2), ("bon", "vbon", 4),
    }  # fmt: skip
    assert (found.concurrency, found.made_by) == (3, "vbon loadtest")
    quality = {one.variant: one for one in result.quality}
    assert rows["bon", "ref", 4].reward == quality["bon (N=4)"].reward
    assert rows["vbon", "vbon", 1].gold == quality["vbon"].gold
    tokens = {key: row.generated_tokens.mean for key, row in rows.items()}
    assert 3 < tokens["bon", "ref", 4] / tokens["ref", "ref", 1] < 5.5
    assert all(row.latency_mean_s and row.latency_p95_s for row in found.rows)
    assert measured_table(result, 1).concurrency == 1
    async with serving(make_runtime(store="none")) as (_, client):
        answer = await client.put("/auto/table", json=as_json(found))
        assert answer.json()["usable"] == 6, answer.text


def test_the_command_writes_the_table(result: LoadTestResult, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(result.model_dump_json())
    out = tmp_path / "table.json"
    cli(args=["table", str(tmp_path), "--out", str(out)], standalone_mode=False)
    assert read_table(out) == measured_table(result)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts_digest": None}, "does not tell"),
        ({"settings": {"ignore_eos": True}}, "--ignore-eos"),
        ({"quality": []}, "no variant with both"),
        ({"cells": []}, "there is none"),
    ],
)
def test_a_result_that_lacks_something_is_refused(
    result: LoadTestResult, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        measured_table(result.model_copy(update=changes))


def test_results_of_earlier_versions_and_absent_levels_are_refused(result: LoadTestResult) -> None:
    old = [cell.model_copy(update={"generated_tokens": None}) for cell in result.cells]
    with pytest.raises(DataError, match="earlier version"):
        measured_table(result.model_copy(update={"cells": old}))
    with pytest.raises(DataError, match="7 is not one; there are: 1, 3"):
        measured_table(result, 7)


def test_a_percentile_s_interval_holds_it_in_95_of_100_samples() -> None:
    """Of 400 samples of 300, coverage is .95 +- .033 (three standard errors) or more."""
    rng, true = np.random.default_rng(0), -np.log(0.05)
    held = 0
    for _ in range(400):
        found = percentile_interval(rng.exponential(size=300).tolist(), 0.95)
        assert found is not None
        held += found.low <= true <= found.high
    assert held / 400 > 0.95 - 0.033
    assert percentile_interval([], 0.95) is None
