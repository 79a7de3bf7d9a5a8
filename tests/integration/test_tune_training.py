"""`vbon tune training` on the tiny sandbox: real cells, an interrupted search, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("optuna")

from training.tune.command import verdict
from training.tune.config import TuneTrainingConfig
from training.tune.run import _Search, tune_training
from vbon.errors import DataError

pytestmark = pytest.mark.train

SPACE = """
objectives = ["vbon", "kl-rl"]
learning_rate = { low = 1e-4, high = 1e-3, log = true }
warm_start_share = [0.0, 0.5]
[objective.vbon]
num_samples = [2, 4]
[objective.kl-rl]
beta = { low = 0.1, high = 1, log = true }
"""


def config_of(sandbox: Path, tmp_path: Path, **changes: Any) -> TuneTrainingConfig:
    heldout = (sandbox / "prompts" / "heldout.jsonl").read_text().splitlines()
    (tmp_path / "validation.jsonl").write_text("\n".join(heldout[:2]))
    (tmp_path / "test.jsonl").write_text("\n".join(heldout[2:]))
    (tmp_path / "space.toml").write_text(changes.pop("space_text", SPACE))
    values: dict[str, Any] = {
        "policy": str(sandbox / "policy"),
        "reward": str(sandbox / "reward"),
        "gold": None,
        "cache": sandbox / "cache.jsonl",
        "heldout": tmp_path / "test.jsonl",
        "validation": tmp_path / "validation.jsonl",
        "space": tmp_path / "space.toml",
        "out": tmp_path / "search",
        "steps": 2,
        "prompts_per_step": 2,
        "samples_per_prompt": 2,
        "max_new_tokens": 12,
        "reference_samples": 16,
        "policy_samples": 4,
        "trials": 2,
        "finalists": 1,
        "repeats": 1,
        "kl_nats": 50.0,
        "sampler": "random",
    }
    return TuneTrainingConfig(**{**values, **changes})


def test_a_search_trains_repeats_and_tests_and_a_second_run_trains_nothing(
    sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    config = config_of(sandbox, tmp_path)

    def interrupt(self: _Search) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_Search, "_choose", interrupt)
        found = tune_training(config, said.append)
    assert found.status == "interrupted"
    assert found.trials == 2
    found = tune_training(config, said.append)
    assert any("Going on after 2 trials" in line for line in said)
    assert found.status == "recommended"
    assert found.recommended is not None
    assert found.tested is not None
    assert (found.tested.directory / "checkpoint" / "config.json").is_file()
    assert verdict(config, found)[0] == f"Recommended: {found.recommended.label}"
    record = json.loads((tmp_path / "search" / "tune.json").read_text())
    assert record["recommendation"]["objective"] in {"vbon", "kl-rl"}
    before = sorted((tmp_path / "search").rglob("record.json"))
    times = [path.stat().st_mtime_ns for path in before]
    tune_training(config, said.append)
    assert [path.stat().st_mtime_ns for path in before] == times
    with pytest.raises(DataError, match=r"kl_nats was 50\.0 and is 2\.0 now"):
        tune_training(config_of(sandbox, tmp_path, kl_nats=2.0), said.append)


def test_a_target_out_of_reach_names_the_closest(sandbox: Path, tmp_path: Path) -> None:
    config = config_of(
        sandbox, tmp_path, target="reward >= 1000", trials=1, kl_nats=None, minimise="seconds"
    )
    found = tune_training(config, lambda _: None)
    assert found.status == "unmet"
    assert "below the target at its lower bound" in found.nearest
    assert verdict(config, found)[0] == "Not reached."


def test_failed_cells_are_failed_trials_and_a_search_of_failures_says_so(
    sandbox: Path, tmp_path: Path
) -> None:
    space = 'objectives = ["vbon"]\nlearning_rate = 1000.0\n[objective.vbon]\nnum_samples = 2'
    config = config_of(sandbox, tmp_path, space_text=space, trials=1, max_kl=1e-6)
    with pytest.raises(DataError, match="every trial failed"):
        tune_training(config, lambda _: None)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ('objectives = ["none"]', "none"),
        ('objectives = ["vbon"]\nbeta = 1', "has no setting 'beta'"),
        ("learning_rate = { low = 2, high = 1 }", "must be below high"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(
    sandbox: Path, tmp_path: Path, space: str, words: str
) -> None:
    from vbon.errors import VbonError

    with pytest.raises(VbonError, match=words):
        tune_training(config_of(sandbox, tmp_path, space_text=space), lambda _: None)


def test_prompts_with_two_roles_and_contradictions_are_refused(
    sandbox: Path, tmp_path: Path
) -> None:
    config = config_of(sandbox, tmp_path)
    shared = config.model_copy(update={"validation": tmp_path / "test.jsonl"})
    with pytest.raises(DataError, match="no prompt in common"):
        tune_training(shared, lambda _: None)
    for changes, words in [
        ({"kl_of_best_of": 4}, "not both"),
        ({"target": "gold >= 1"}, "give --gold"),
        ({"heldout": None}, "give --heldout"),
    ]:
        with pytest.raises(ValueError, match=words):
            config_of(sandbox, tmp_path, **changes)
