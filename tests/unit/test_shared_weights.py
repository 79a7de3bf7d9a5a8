"""Weights that several models of a run share: those of the reference are also a LoRA's base."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.train

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from training.train.config import train_config_type  # noqa: E402
from training.train.inputs import TrainingInputs  # noqa: E402
from training.train.prepare import _trainable_policy  # noqa: E402

TOKENS = torch.arange(6)[None]


def inputs_and_policy(**settings: Any) -> tuple[TrainingInputs, Any]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
        )
    )  # fmt: skip
    config = train_config_type("kl-rl")(policy="p", reward="r", **settings)
    inputs = TrainingInputs(config, 0, 0, 0)
    inputs.__dict__["_loaded"] = (model.eval().requires_grad_(False), None)
    return inputs, _trainable_policy(config, inputs)


def stored(model: Any) -> set[int]:
    """The addresses of a model's weights in memory."""
    return {weights.data_ptr() for weights in model.parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lora_adds_its_own_weights_only(checkpointing: bool) -> None:
    inputs, policy = inputs_and_policy(lora_rank=2, gradient_checkpointing=checkpointing)
    before = inputs.reference(TOKENS).logits
    trained = {weights.data_ptr() for weights in policy.parameters() if weights.requires_grad}
    assert stored(policy) == stored(inputs.reference) | trained
    assert not trained & stored(inputs.reference)
    optimizer = torch.optim.SGD(policy.parameters(), lr=10.0)
    for _ in range(2):  # the first step changes one half of the adapter only
        policy(TOKENS).logits.logsumexp(-1).sum().backward()
        optimizer.step()
    assert not torch.allclose(policy(TOKENS).logits, before)
    torch.testing.assert_close(inputs.reference(TOKENS).logits, before, atol=0, rtol=0)


def test_full_weights_are_a_copy() -> None:
    inputs, policy = inputs_and_policy()
    assert not stored(policy) & stored(inputs.reference)
    assert all(weights.requires_grad for weights in policy.parameters())
