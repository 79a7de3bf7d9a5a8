"""The rates, ratios and table of ``bench``, computed from made-up timings."""

from __future__ import annotations

import pytest
from rich.console import Console

from training.bench import run as bench
from training.bench.result import bench_result, bench_table, ratios
from training.bench.run import run_bench
from training.bench.steps import Step
from training.configs import BenchConfig
from vbon.errors import VbonError


def repeat(seconds: float, tokens: int = 200, steps: int = 2) -> list[Step]:
    return [Step(seconds, 10, tokens, seconds / 4, seconds / 8, seconds / 2)] * steps


def test_ratios_are_of_neighbouring_pairs() -> None:
    """Pairs give 2, 2 and 4 although the machine slows down tenfold midway; overall means would not."""
    ours = [repeat(1.0), repeat(1.0), repeat(10.0)]
    trl = [repeat(2.0), repeat(2.0), repeat(40.0)]
    found = ratios(ours, trl)
    ratio = found["samples_per_second"]
    assert (ratio.median, ratio.low, ratio.high, ratio.count) == (2.0, 2.0, 4.0, 3)
    assert found["tokens_per_second"] == ratio
    with pytest.raises(ValueError, match="argument"):
        ratios(ours, trl[:2])


def test_a_ratio_of_tokens_counts_tokens() -> None:
    found = ratios([repeat(1.0, tokens=100)], [repeat(2.0, tokens=400)])
    assert found["samples_per_second"].median == 2.0
    assert found["tokens_per_second"].median == 0.5


def test_result_and_table_show_both_sides() -> None:
    result = bench_result({"ours": [repeat(1.0)] * 3, "trl": [repeat(2.0)] * 3})
    assert result["same_samples"]
    ours = result["sides"]["ours"]
    assert (ours["samples"], ours["tokens"], ours["response_tokens"]) == (60, 1200, 20.0)
    assert ours["learn_s"] == {"median": 0.5, "low": 0.5, "high": 0.5, "count": 3}
    console = Console(width=200)
    with console.capture() as captured:
        console.print(bench_table(result))
    text = captured.get()
    for shown in (
        "[smallest, largest] of 3 repeats",
        "10.0 [10.0, 10.0]",
        "2.00 [2.00, 2.00]",
        "RLOO",
    ):
        assert shown in text
    assert not bench_result({"ours": [repeat(1.0)], "trl": [repeat(1.0, steps=3)]})["same_samples"]


def test_without_trl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise bench.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(bench.metadata, "version", missing)
    with pytest.raises(VbonError, match="pip install trl"):
        run_bench(BenchConfig())
