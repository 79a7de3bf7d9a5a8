"""The search space of `vbon tune training`, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.tune.cells import Candidate, CellTrainer
from training.tune.config import TuneTrainingConfig
from training.tune.space import default_space, read_training_space
from vbon.errors import InvalidInputError


@pytest.mark.parametrize(
    "text",
    [
        'warm_start_share = "half"', "warm_start_share = -0.1", "warm_start_share = [0, 1.2]",
        "warm_start_share = true", "warm_start_share = { low = 0, high = 2 }",
        "[objective.vbon]\nwarm_start_share = 3",
    ],
)  # fmt: skip
def test_values_that_are_not_shares_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.toml"
    path.write_text(f"objectives = ['vbon']\n{text}\n")
    with pytest.raises(InvalidInputError, match=r"warm_start_share is .* from 0 to 1"):
        read_training_space(path)


def test_shares_from_none_to_all_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text("objectives = ['vbon']\nwarm_start_share = [0, 0.5, 1]\n")
    assert "warm_start_share 0, 0.5, 1" in read_training_space(path).describe()
    assert "warm_start_share 0 to 0.6" in default_space().describe()


def test_a_value_that_no_sweep_takes_is_named_on_one_line(tmp_path: Path) -> None:
    """A number in the place of a cache's path passes the space file, which knows no types."""
    config = TuneTrainingConfig(heldout=tmp_path / "heldout.jsonl")
    trainer = CellTrainer(config, tmp_path / "p.jsonl", tmp_path / "cells", keep=False)
    candidate = Candidate("vbon", (("cache", 3), ("num_samples", 2)))
    with pytest.raises(InvalidInputError, match=r"^cache: [^\n]*path[^\n]*$") as told:
        trainer.train(candidate, 0, "reward")
    assert told.value.field == "cache"
