"""The sampling that a generation_config.json asks for: training ignores it, checkpoints name their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.train

from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel  # noqa: E402

from tests.unit.test_rollouts import llama_tokenizer  # noqa: E402
from training.rollouts.rollout import sample_responses  # noqa: E402
from training.train.export import _set_own_sampling  # noqa: E402

# Each of these changes the distribution; the last is one that transformers refuses to save again.
HABITS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.9, "temperature": 0.3, "top_p": 0.5, "top_k": 2, "min_p": 0.4,
     "do_sample": True, "no_repeat_ngram_size": 1, "max_new_tokens": 2, "suppress_tokens": [1, 2, 3]},
    {"temperature": 0.6, "top_p": 0.9, "top_k": 3},
]  # fmt: skip


def load(directory: Path, habits: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    file = directory / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [0, 5], "pad_token_id": 0, **habits}))
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def test_the_sampler_of_training_ignores_it(tmp_path: Path) -> None:
    """Except for the tokens that end a response (test_rollouts.py)."""
    drawn = [
        sample_responses(
            load(tmp_path / str(i), habits), llama_tokenizer(), [[1, 2]], num_samples=20,
            max_new_tokens=8, seeds=[3],
        ).response_BT.tolist()
        for i, habits in enumerate(HABITS)
    ]  # fmt: skip
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize("habits", HABITS)
def test_a_checkpoint_has_the_sampling_that_it_was_trained_with(
    tmp_path: Path, habits: dict[str, Any]
) -> None:
    policy = load(tmp_path / "policy", habits)
    _set_own_sampling(policy, 0.7)
    policy.save_pretrained(tmp_path / "checkpoint")
    written = json.loads((tmp_path / "checkpoint" / "generation_config.json").read_text())
    written.pop("transformers_version")
    assert written == {
        "do_sample": True, "temperature": 0.7, "top_p": 1.0, "top_k": 0,
        "eos_token_id": [0, 5], "pad_token_id": 0,
    }  # fmt: skip
    # transformers' own generate follows the file: its samples come from the policy at temperature 0.7.
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint").eval()
    prompt = torch.tensor([[1, 2]])
    with torch.no_grad():
        wanted = torch.softmax(tuned(prompt).logits[0, -1] / 0.7, -1)
        torch.manual_seed(1)
        drawn = tuned.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_return_sequences=4000,
            max_new_tokens=1,
        )
    found = torch.bincount(drawn[:, 2], minlength=8) / 4000
    # Five standard deviations at most at a fixed seed; every habit above moves some token by far more.
    assert bool(((found - wanted).abs() < 5 * (wanted * (1 - wanted) / 4000).sqrt()).all())
