"""The figures of ``scripts/gpu-check`` are read from what a real training leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.tiny import train_config
from training.gpu_check.config import GpuCheckConfig
from training.gpu_check.figures import _expected_bytes, figures_of
from training.gpu_check.plan import CheckStep, Plan
from training.train.size_defaults import expected_bytes
from vbon.storage.model_shape import read_model_shape

pytestmark = pytest.mark.train


def test_a_training_has_its_rate_and_its_progress(vbon_checkpoint: Path, tmp_path: Path) -> None:
    plan = Plan(GpuCheckConfig(out=vbon_checkpoint.parent, tiny=True))
    step = CheckStep(vbon_checkpoint.name, "a training", "training", (), 1)
    found = figures_of(step, plan, {"seconds": 1.0})
    rows = [json.loads(line) for line in (vbon_checkpoint / "history.jsonl").open()]
    assert found["steps"] == len(rows) == 7
    assert found["samples_per_s"] > 0
    assert found["first"]["loss"] == pytest.approx(rows[0]["loss"], abs=1e-4)
    assert found["last"]["kl_nats"] == pytest.approx(rows[-1]["kl_nats"], abs=1e-4)


def test_the_arithmetic_is_that_of_the_recorded_settings(vbon_checkpoint: Path) -> None:
    sandbox = vbon_checkpoint.parent
    expected = expected_bytes(
        read_model_shape(sandbox / "policy"), train_config(sandbox, vbon_checkpoint)
    )
    assert _expected_bytes(vbon_checkpoint, sandbox / "policy") == expected
