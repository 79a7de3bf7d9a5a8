"""Planted bad checkpoints are refused after a real ``vbon evaluate``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.train

from safetensors.torch import load_file, save_file  # noqa: E402

from training.configs import EvaluateConfig  # noqa: E402
from training.evaluation.evaluate import evaluate_checkpoints  # noqa: E402
from vbon.distil.decision import Decision, Spent  # noqa: E402
from vbon.distil.loop.gate import Limits, decide, read_by_prompt  # noqa: E402
from vbon.storage.checkpoints import write_checksums  # noqa: E402

Weights = dict[str, Any]
LIMITS = Limits(
    n=4, margin=0.02, bon_margin=0.1, max_kl=1.3, max_length_ratio=1.5, max_truncated=0.2,
    least_prompts=5,
)  # fmt: skip


def planted(sandbox: Path, out: Path, change: Callable[[Weights], None]) -> Path:
    """A copy of the reference policy with changed weights."""
    shutil.copytree(sandbox / "policy", out)
    file = out / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    write_checksums(out, "causal-lm")
    return out


def decided(sandbox: Path, tmp_path: Path, candidate: Path, live: Path | None = None) -> Decision:
    """The decision on a checkpoint, after a real evaluation."""
    others = {} if live is None else {"live": str(live)}
    config = EvaluateConfig(
        policy=str(sandbox / "policy"), reward=str(sandbox / "reward"), gold=None,
        checkpoints={"candidate": str(candidate), **others}, out=tmp_path / "evaluated",
        prompts=sandbox / "prompts" / "heldout.jsonl", num_samples=4, reference_samples=32,
        policy_samples=64, max_new_tokens=12, per_prompt=True,
    )  # fmt: skip
    evaluate_checkpoints(config)
    return decide(read_by_prompt(tmp_path / "evaluated"), LIMITS, Spent())


def noise(weights: Weights) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        weights[name] = value + 0.3 * torch.randn(value.shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("the reference itself", lambda weights: None, "below that of best-of-4"),
        ("noised weights", noise, "Its KL from the reference policy"),
    ],
)
def test_a_planted_bad_checkpoint_is_refused(
    sandbox: Path, tmp_path: Path, name: str, change: Callable[[Weights], None], words: str
) -> None:
    bad = planted(sandbox, tmp_path / "bad", change)
    found = decided(sandbox, tmp_path, bad)
    assert found.verdict == "refuse", (name, found.reasons)
    assert any(words in reason and "is the limit" in reason for reason in found.reasons)
    assert found.figures.candidate.length.mean > 0


def test_a_checkpoint_is_no_worse_than_itself_and_the_reference_is_worse_than_it(
    sandbox: Path, vbon_checkpoint: Path, tmp_path: Path
) -> None:
    found = decided(sandbox, tmp_path, vbon_checkpoint, vbon_checkpoint)
    difference = found.figures.difference["win_rate"]
    assert difference.low <= 0 <= difference.high
    assert found.figures.live is not None
    assert found.figures.live.kl_nats.mean == pytest.approx(
        found.figures.candidate.kl_nats.mean, rel=0.5
    )
