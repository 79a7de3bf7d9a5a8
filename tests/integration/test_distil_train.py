"""Training takes a cache of collected answers for one of its own policy and reward model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from service.distil.offered import Identities
from service.runtime.build import build_runtime
from service.runtime.prompt import PromptResult
from service.settings import ServiceSettings
from service.strategies import Outcome, ScoredCandidate
from tests.unit.collected import answer
from vbon.distil.cache import CacheOptions, make_cache
from vbon.distil.directory import CollectedDirectory
from vbon.engine import Candidate, Sampling
from vbon.errors import DataError

pytestmark = [pytest.mark.vllm, pytest.mark.train]


def test_the_service_and_training_name_models_alike(sandbox: Path, tmp_path: Path) -> None:
    """Revisions and stop tokens of a service that is built, not started, are those that training checks."""
    pytest.importorskip("vllm")
    from tests.tiny import train_config
    from training.train.inputs import TrainingInputs

    runtime = build_runtime(
        ServiceSettings(
            policies={"ref": str(sandbox / "policy")}, reward=str(sandbox / "reward"), store="none"
        )
    )
    assert runtime.reward is not None
    chosen = ScoredCandidate(Candidate(0, " a", (5, 1), "stop"), 0.5)
    result = PromptResult(
        mode=runtime.mode("bon"),
        sampling=Sampling(max_tokens=12),
        policy=runtime.policies["ref"].info,
        scorer=runtime.reward,
        prompt_tokens=3,
        num_samples=2,
        outcome=Outcome(chosen, (chosen,), 0.0, 0.0, 2),
        queue_ms=0.0,
        scoring_ms=0.0,
        total_ms=0.0,
        reward_revision=runtime.reward.revision,
    )
    directory = CollectedDirectory(tmp_path / "kept")
    directory.append(Identities().of(result), answer())
    directory.close()
    make_cache(CacheOptions(tmp_path / "kept", tmp_path / "cache.jsonl", heldout_share=0.0))
    config = train_config(sandbox, tmp_path / "out", cache=tmp_path / "cache.jsonl")
    inputs = TrainingInputs(config, heldout_limit=1, reference_samples=2, policy_samples=2)
    assert (len(inputs.cache), inputs.cache.total_samples) == (1, 2)
    assert inputs.cache.responses(0) == [[1, 9], [2, 9]]
    for name, value in (("policy_revision", "sha256:0"), ("reward_revision", "sha256:0")):
        other = Identities().of(result).model_copy(update={name: value})
        directory = CollectedDirectory(tmp_path / name)
        directory.append(other, answer())
        directory.close()
        make_cache(CacheOptions(tmp_path / name, tmp_path / f"{name}.jsonl", heldout_share=0.0))
        wrong = train_config(sandbox, tmp_path / "out", cache=tmp_path / f"{name}.jsonl")
        with pytest.raises(DataError, match=f"was sampled with {name}"):
            _ = replace(inputs, config=wrong).cache
