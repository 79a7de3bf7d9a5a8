"""Sampling with a KV cache that is written in place, against whole sequences without a cache."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.train

from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from training.rollouts import growing_cache  # noqa: E402
from training.rollouts.growing_cache import without_holes  # noqa: E402
from training.rollouts.rollout import row_uniforms, sample_responses  # noqa: E402

EOS, TOKENS, SAMPLES = 1, 9, 6
# The first prompt is longer than the sliding window below.
PROMPTS, SEEDS = [[5, 3, 7, 2, 8, 6], [4], [9, 9]], [1, 2, 3]
SIZES: dict[str, Any] = {
    "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 1.0,
}  # fmt: skip


class Ends:
    """The part of a tokenizer that sampling reads."""

    eos_token_id, pad_token_id = EOS, 0


def models() -> dict[str, Any]:
    gpt2 = GPT2Config(
        vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=1.0
    )
    return {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "gpt2": lambda: GPT2LMHeadModel(gpt2),
        "sliding window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    }


@torch.no_grad()
def drawn_one_by_one(model: Any) -> list[list[int]]:
    """The samples by their definition: each token from the whole sequence before it, without padding."""
    uniforms = row_uniforms(SEEDS, SAMPLES, TOKENS)
    found = []
    for row, uniform in enumerate(uniforms):
        response: list[int] = []
        for number in uniform:
            ids = torch.tensor([PROMPTS[row // SAMPLES] + response])
            cdf = model(ids).logits[0, -1].softmax(-1).double().cumsum(0)
            response.append(int((cdf <= number * cdf[-1]).sum()))
            if response[-1] == EOS:
                break
        found.append(response)
    return found


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("block", [1, 2, 64])
def test_samples_are_those_drawn_one_by_one(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Responses end at different places, and the memory grows after each block of tokens."""
    monkeypatch.setattr(growing_cache, "BLOCK", block)
    torch.manual_seed(1)
    model = models()[name]().eval()
    rollout = sample_responses(
        model, Ends(), PROMPTS, num_samples=SAMPLES, max_new_tokens=TOKENS, seeds=SEEDS
    )
    rows = zip(rollout.response_BT, rollout.mask_BT, strict=True)
    found = [response[mask].tolist() for response, mask in rows]
    assert found == drawn_one_by_one(model)
    assert len({len(response) for response in found}) > 3


def test_kept_sequences_stay_where_they_are_if_they_can() -> None:
    """For every choice of up to six sequences: later ones fill the places of those that ended."""
    for count in range(1, 7):
        for choice in product([False, True], repeat=count):
            order = without_holes(torch.tensor(choice)).tolist()
            kept = [place for place, stays in enumerate(choice) if stays]
            assert sorted(order) == kept
            for place, index in enumerate(order):
                assert index == place or (not choice[place] and index >= len(kept))
