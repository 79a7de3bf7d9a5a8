"""The files of `vbon tune`: what a run that has not ended leaves as it was, and the list of all settings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from service.tune.drawing import Drawing
from service.tune.outputs import settings_text, write_outputs
from service.tune.question import Question, priced
from service.tune.search import Findings, Status
from service.tune.setting import Measured, setting_of
from tests.unit.test_tune_choice import LatencyModel, measured
from tests.unit.test_tune_space import SERVED
from vbon.measured.target import Target
from vbon.prompts import Prompt

QUESTION = Question(Target("reward", 1.0), "reward", "tokens")
FILES = ("table.json", "tune.json", "settings.csv", "serve.toml")


def found(status: Status, trials: int, count: int = 2) -> Findings:
    drawn = [measured(n, np.array([2.0, 2.0 + n])) for n in range(1, count + 1)]
    rows = priced(QUESTION, drawn, 1.0, LatencyModel())
    best = rows[0] if status == "recommended" else None
    return Findings(status=status, rows=rows, recommended=best, trials=trials)


def written(directory: Path, findings: Findings) -> dict[str, bytes]:
    write_outputs(directory, QUESTION, findings, SERVED, [Prompt(text="a")], {}, None)
    return {name: (directory / name).read_bytes() for name in FILES if (directory / name).exists()}


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_a_repeated_run_that_is_cut_leaves_the_files_of_the_one_that_ended(
    tmp_path: Path, status: Status
) -> None:
    whole = written(tmp_path, found("recommended", 3))
    assert set(whole) == set(FILES)
    assert written(tmp_path, found(status, 3)) == whole
    assert written(tmp_path, found(status, 0)) == whole
    # With more trials there is more to tell, and what was recommended stays until the run ends.
    more = written(tmp_path, found(status, 4, count=3))
    assert more["serve.toml"] == whole["serve.toml"]
    assert json.loads(more["tune.json"])["trials"] == 4
    assert "serve.toml" not in written(tmp_path, found("unmet", 4))


@pytest.mark.parametrize("before", [None, "running", "interrupted", "damaged"])
def test_a_run_that_did_not_end_is_written_over(tmp_path: Path, before: Status | None) -> None:
    if before == "damaged":
        (tmp_path / "tune.json").write_text("{")
    elif before is not None:
        written(tmp_path, found(before, 5))
    after = written(tmp_path, found("interrupted", 1, count=3))
    assert json.loads(after["tune.json"])["trials"] == 1
    assert "serve.toml" not in after


def test_all_settings_are_listed_once_with_their_means() -> None:
    drawing = Drawing("vbon", 0.7, 0.9, 40, 5)
    own = setting_of("soft-bon", drawing, 3, {"reward_temperature": 0.25, "log_p": "policy"})
    one = Measured(
        own,
        {"reward": np.array([1.0, 2.0]), "gold": np.array([np.nan, 3.0])},
        np.array([20.0, 40.0]),
    )
    gains = {"reward": np.array([0.0, 0.5]), "gold": np.full(2, np.nan)}
    other = Measured(setting_of("bon", drawing, 2, {}), gains, np.array([9.0, 9.0]))
    rows = priced(QUESTION, [one, other, other], 1.0, LatencyModel())
    listed = list(csv.DictReader(settings_text(rows).splitlines()))
    assert len(listed) == 2
    assert listed[0] == {
        "mode": "soft-bon", "policy": "vbon", "n": "3", "temperature": "0.7", "top_p": "0.9",
        "top_k": "5", "settings": "log_p=policy, reward_temperature=0.25", "reward": "1.5",
        "gold": "3", "win_rate": "", "tokens": "30", "latency_mean_ms": "", "latency_p95_ms": "",
        "feasible": "true",
    }  # fmt: skip
    assert (listed[1]["mode"], listed[1]["reward"], listed[1]["feasible"]) == (
        "bon",
        "0.25",
        "false",
    )
