"""An evaluation tells where it samples or rewards a checkpoint otherwise than its training did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.train

from training.configs import EvaluateConfig  # noqa: E402
from training.evaluation.evaluate import _differences, evaluation_table  # noqa: E402


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_new_tokens": 40, "temperature": 0.7, "missing_eos_reward": -20.0}, []),
        (
            {"max_new_tokens": 32, "temperature": 1.0},
            [
                "max_tokens is 32, but the checkpoint was trained and measured with 40",
                "temperature is 1, but the checkpoint was trained and measured with 0.7",
                "missing_eos_reward is None, but the checkpoint was trained and measured with -20.0. Its "
                "figures here are not those of its card",
            ],
        ),
    ],
)
def test_differences_from_the_card(
    tmp_path: Path, changes: dict[str, Any], expected: list[str]
) -> None:
    identity = {"max_new_tokens": 40, "temperature": 0.7, "missing_eos_reward": -20.0}
    (tmp_path / "training.json").write_text(json.dumps({"identity": identity}))
    other = tmp_path / "elsewhere"  # a checkpoint without a record has nothing to differ from
    config = EvaluateConfig(checkpoints={"a": str(tmp_path), "b": str(other)}, **changes)
    found = _differences(config)
    assert found == ([f"a: {'; '.join(expected)}"] if expected else [])


def test_the_table_says_at_which_temperature_the_kl_is() -> None:
    assert "temperature" not in str(evaluation_table([], 4, 8).caption)
    told = str(evaluation_table([], 4, 8, 0.7).caption)
    assert "both sides of the KL, are at temperature 0.7." in told
