"""An installed package's objective, trained by its command on the tiny sandbox."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.train

from tests.plugin_package import environment_with, write_toys  # noqa: E402
from vbon.storage.checkpoints import check_checkpoint  # noqa: E402
from vbon.storage.training_record import read_training_record  # noqa: E402


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "history.jsonl").read_text().splitlines()]


def test_an_objective_of_a_package_trains_a_checkpoint(sandbox: Path, tmp_path: Path) -> None:
    """Its loss of the first step is half that of the objective it derives from, on the same samples."""
    environment = environment_with(write_toys(tmp_path / "installed"))
    found = {}
    for name in ("bon-sft", "half-sft"):
        out = found[name] = tmp_path / name
        done = subprocess.run(
            [
                sys.executable, "-m", "training", name, "--policy", sandbox / "policy",
                "--reward", sandbox / "reward", "--cache", sandbox / "cache.jsonl", "--heldout", "none",
                "--out", out, "--steps", "2", "--prompts-per-step", "4", "--samples-per-prompt", "4",
                "--max-new-tokens", "12", "--num-samples", "4",
            ],
            capture_output=True, text=True, check=False, env=environment, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        check_checkpoint(str(out), "causal-lm")
    assert losses(found["half-sft"])[0] == pytest.approx(losses(found["bon-sft"])[0] / 2, rel=1e-5)
    record = read_training_record(str(found["half-sft"]))
    assert record is not None
    assert record.objective == "half-sft"
    assert "half SFT" in (found["half-sft"] / "README.md").read_text()
