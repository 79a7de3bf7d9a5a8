"""``bench`` on a tiny sandbox: the figures' shape and the amounts, never the timings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytestmark = pytest.mark.train

from training.bench.run import run_bench  # noqa: E402
from training.configs import BenchConfig  # noqa: E402


def test_bench_trains_both_sides_on_equally_many_samples(
    sandbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    run_bench(
        BenchConfig(
            policy=str(sandbox / "policy"), reward=str(sandbox / "reward"),
            cache=sandbox / "cache.jsonl", steps=3, repeats=1, prompts_per_step=8,
            samples_per_prompt=4, max_new_tokens=12, json_file=out,
        )
    )  # fmt: skip
    result = json.loads(out.read_text())
    assert result["same_samples"]
    for side in ("ours", "trl"):
        figures = result["sides"][side]
        assert figures["samples"] == 2 * 8 * 4  # the first of three steps is left out
        assert 1 <= figures["response_tokens"] <= 12
        (steps,) = figures["repeats"]
        assert len(steps) == 2
        for step in steps:
            parts = [step[name] for name in ("sample_s", "score_s", "learn_s")]
            assert min(parts) > 0
            assert sum(parts) <= step["seconds"] + 1e-9
    assert result["ratio"]["samples_per_second"]["count"] == 1
    assert result["versions"]["torch"]
    assert result["config"]["beta"] == 0.1
    assert "RLOOTrainer" in capsys.readouterr().out
