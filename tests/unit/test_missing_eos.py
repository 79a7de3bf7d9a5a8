"""Samples that the token limit cuts off are counted, and get a reward of their own if one is set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.train

from accelerate import Accelerator  # noqa: E402

from training.configs import EvaluateConfig, SampleConfig, TrainConfig  # noqa: E402
from training.evaluation import measure  # noqa: E402
from training.evaluation.measure import Measurer  # noqa: E402
from training.rollouts.rollout import rollout_of  # noqa: E402
from training.rollouts.token_terms import TokenTerms  # noqa: E402
from training.train.inputs import TrainingInputs  # noqa: E402
from training.train.step_metrics import (  # noqa: E402
    StepMetrics,
    StepSeconds,
    StepTotals,
    step_metrics,
)
from training.train.step_samples import StepSampler, stand_ins  # noqa: E402
from vbon.errors import DataError, RewardError  # noqa: E402
from vbon.prompts import Prompt  # noqa: E402
from vbon.rewards import Scorable  # noqa: E402
from vbon.rewards.truncation import with_missing_eos_reward  # noqa: E402
from vbon.storage.cache_metadata import metadata_path  # noqa: E402

EOS, STOP, OTHER = 0, 5, 3
# Two prompts with two samples each: ended by EOS, cut off, ended by a stop token of the model, cut off.
RESPONSES = [[OTHER, EOS], [OTHER, OTHER, OTHER], [STOP], [OTHER, OTHER, 4]]
PROMPT = Prompt(text="p")


class Digits:
    """A tokenizer whose texts are the ids as digits, without EOS."""

    eos_token_id = pad_token_id = EOS

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(str(token) for token in ids if token != EOS)


class Lengths:
    """A reward model that scores a text by its length, and gives no score to '334'."""

    def __init__(self, unscored: str | None = None) -> None:
        self.unscored = unscored

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        texts = [item.completion for item in items]
        return [None if text == self.unscored else float(len(text)) for text in texts]


def history_row(sources: Any) -> StepMetrics:
    return step_metrics(Accelerator(), 0, "main", StepTotals(), sources, 1e-4, StepSeconds(0, 0, 0))


def rollout() -> Any:
    return rollout_of([[1], [1], [2], [2]], RESPONSES, Digits(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("penalty", "expected"), [(None, [1.0, None, 2.0]), (-20.0, [1.0, -20.0, -20.0])]
)
def test_the_reward_of_a_sample_that_was_cut_off(
    penalty: float | None, expected: list[float | None]
) -> None:
    assert with_missing_eos_reward([1.0, None, 2.0], [False, True, True], penalty) == expected


@pytest.mark.parametrize(
    ("penalty", "expected"), [(None, [1.0, 3.0, 0.0, 3.0]), (-20.0, [1.0, -20.0, 0.0, -20.0])]
)
def test_training_scores_what_was_cut_off_with_it(
    penalty: float | None, expected: list[float]
) -> None:
    cache: Any = SimpleNamespace(
        prompt=lambda row: PROMPT, log_cdf=lambda row, rewards, inclusive: np.zeros(len(rewards))
    )
    generator: Any = SimpleNamespace(extra_stop_ids=(STOP,))
    reward: Any = Lengths()
    sampler = StepSampler(
        Digits(), reward, cache, generator, samples_per_prompt=2, seed=0,
        device=torch.device("cpu"), missing_eos_reward=penalty,
    )  # fmt: skip
    found = sampler.score(rollout(), [(0, 0), (1, 1)])
    assert found.reward_B.tolist() == expected
    assert found.truncated_B is not None
    assert found.truncated_B.tolist() == [False, True, False, True]
    assert history_row({"policy": found}).truncated_share == 0.5
    # Cached samples are the reference's, and the cache's own record counts them.
    cached = replace(found, truncated_B=None)
    assert history_row({"cached": cached}).truncated_share is None


def test_an_unscored_sample_that_was_cut_off_gets_it_too() -> None:
    cache: Any = SimpleNamespace(
        prompt=lambda row: PROMPT, log_cdf=lambda row, rewards, inclusive: np.zeros(len(rewards))
    )
    generator: Any = SimpleNamespace(extra_stop_ids=(STOP,))
    reward: Any = Lengths(unscored="334")
    shared: dict[str, Any] = {"samples_per_prompt": 2, "seed": 0, "device": torch.device("cpu")}
    plain = StepSampler(Digits(), reward, cache, generator, **shared)
    found = plain.score(rollout(), [(0, 0), (1, 1)])
    assert (found.reward_B.tolist(), found.unscored) == ([1, 3, 0, 0], 1)
    sampler = StepSampler(Digits(), reward, cache, generator, **shared, missing_eos_reward=-1.0)
    assert sampler.score(rollout(), [(0, 0), (1, 1)]).reward_B.tolist() == [1, -1, 0, -1]


def test_scored_samples_of_a_prompt_take_turns_for_those_without_a_reward() -> None:
    found = stand_ins([None, 5.0, None, 6.0, None, 1.0, 2.0, 3.0, 4.0, 5.0], 5)
    assert found == [1, 1, 3, 3, 1, 5, 6, 7, 8, 9]
    with pytest.raises(RewardError, match="none of the 2 samples of a prompt has a finite reward"):
        stand_ins([1.0, 2.0, None, None], 2)


def test_a_step_with_too_many_samples_without_a_reward_is_refused() -> None:
    """Two of four are more than one and more than a tenth, although each prompt has a scored sample."""
    cache: Any = SimpleNamespace(prompt=lambda row: PROMPT)
    generator: Any = SimpleNamespace(extra_stop_ids=(STOP,))
    reward: Any = SimpleNamespace(score=lambda items: [1.0, None, None, 1.0])
    sampler = StepSampler(
        Digits(), reward, cache, generator, samples_per_prompt=2, seed=0, device=torch.device("cpu")
    )
    with pytest.raises(
        RewardError, match="2 of 4 samples have no finite reward, the first is '333'"
    ):
        sampler.score(rollout(), [(0, 0), (1, 1)])


def test_measurement_counts_them_and_leaves_gold_rewards_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampled = rollout()
    zeros = torch.zeros(sampled.mask_BT.shape)
    monkeypatch.setattr(measure, "sample_responses", lambda *_, **__: sampled)
    monkeypatch.setattr(
        measure, "terms_of", lambda *_: TokenTerms(zeros, zeros, zeros, sampled.mask_BT)
    )
    model: Any = Lengths()
    measurer = Measurer(
        tokenizer=Digits(), reference=None, reward=model, gold=model, max_new_tokens=3,
        temperature=1.0, batch_size=8, seed=1, extra_stop_ids=(STOP,), missing_eos_reward=-20.0,
    )  # fmt: skip
    found = measurer.measure(None, [(PROMPT, [1]), (PROMPT, [2])], 2, "policy")
    assert [sample.rewards.tolist() for sample in found] == [[1, -20], [0, -20]]
    assert [sample.gold.tolist() for sample in found if sample.gold is not None] == [[1, 3], [0, 3]]
    assert [sample.truncated for sample in found] == [1, 1]


@pytest.mark.parametrize("kind", [SampleConfig, TrainConfig, EvaluateConfig])
def test_records_name_it_only_where_it_is_set(kind: Any) -> None:
    """So caches and runs that were made before the setting existed still count."""
    assert "missing_eos_reward" not in kind().model_dump(mode="json")
    assert kind(missing_eos_reward=-20).model_dump(mode="json")["missing_eos_reward"] == -20


@pytest.mark.parametrize(
    ("recorded", "now", "fits"),
    [({}, None, True), ({"missing_eos_reward": -20.0}, -20.0, True), ({}, -20.0, False),
     ({"missing_eos_reward": -20.0}, None, False)],
)  # fmt: skip
def test_a_cache_with_another_one_is_refused(
    tmp_path: Path, recorded: dict[str, float], now: float | None, fits: bool
) -> None:
    cache = tmp_path / "cache.jsonl"
    cache.write_text("{}")
    revisions = {"policy_revision": "p", "reward_revision": "r"}
    identity = {**revisions, "max_new_tokens": 40, "temperature": 1.0, **recorded}
    metadata_path(cache).write_text(json.dumps({"identity": identity}))
    inputs = TrainingInputs(TrainConfig(cache=cache, missing_eos_reward=now), 1, 1, 1)
    inputs.__dict__["fingerprints"] = revisions
    if fits:
        inputs._check_cache_settings()
    else:
        with pytest.raises(DataError, match="missing_eos_reward"):
            inputs._check_cache_settings()
