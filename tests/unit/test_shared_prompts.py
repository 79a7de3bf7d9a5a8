"""Prompts whose responses share one pass over them, and models that need whole sequences."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.train

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from training.rollouts import predictor  # noqa: E402
from training.rollouts.predictor import Predictor, logprobs_of, output_layer, terms_of  # noqa: E402
from training.rollouts.rollout import Rollout  # noqa: E402
from training.rollouts.shared_prompts import can_share_prompts, shared_prompts  # noqa: E402
from training.train.dropout import remove_dropout  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def rollout_of(prompts: list[list[int]], lengths: list[list[int]]) -> Rollout:
    """Responses of given lengths to each prompt, of random tokens."""
    width = max(len(prompt) for prompt in prompts)
    longest = max(max(of_prompt) for of_prompt in lengths)
    count = sum(len(of_prompt) for of_prompt in lengths)
    sequence = torch.randint(1, 50, (count, width + longest))
    attention = torch.zeros_like(sequence)
    row = 0
    for prompt, of_prompt in zip(prompts, lengths, strict=True):
        for length in of_prompt:
            sequence[row, : width - len(prompt)] = 0
            sequence[row, width - len(prompt) : width] = torch.tensor(prompt)
            attention[row, width - len(prompt) : width + length] = 1
            row += 1
    return Rollout(sequence, attention, sequence[:, width:], attention[:, width:].bool())


def tokens_seen(model: Any) -> list[tuple[int, ...]]:
    """The shapes of the ids that each pass of the model reads, as a list that grows.

    The passes that find out how the model works come before.
    """
    can_share_prompts(model)
    output_layer(model)
    shapes: list[tuple[int, ...]] = []
    model.get_input_embeddings().register_forward_hook(
        lambda _, ids, __: shapes.append(tuple(ids[0].shape))
    )
    return shapes


def test_each_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences in a pass: of lengths 1 and 2, then 3 and 5; nothing reads the last token."""
    monkeypatch.setattr(predictor, "CPU_CHUNK", 2)
    model = llama()
    shapes = tokens_seen(model)
    logprobs_of(Predictor(model), rollout_of([[7, 8, 9], [5]], [[3, 1], [2, 5]]))
    assert shapes == [(2, 3), (2, 1), (2, 4)]


def test_responses_of_one_token_need_the_prompt_only() -> None:
    model = llama()
    rollout = rollout_of([[7, 8], [9]], [[1, 1, 1], [1, 1]])
    shapes = tokens_seen(model)
    found = logprobs_of(Predictor(model), rollout)
    assert shapes == [(2, 2)]
    logits = model(
        input_ids=rollout.sequence_BL,
        attention_mask=rollout.attention_BL,
        position_ids=(rollout.attention_BL.cumsum(1) - 1).clamp(min=0),
    ).logits[:, 1]
    expected = torch.log_softmax(logits, -1).gather(1, rollout.response_BT)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_more_prompts_than_fit_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five prompts, two at once, have the terms and gradients of all at once."""
    rollout = rollout_of(
        [[1], [2, 3], [4, 5, 6], [7, 8], [9]], [[2, 3], [1, 4], [2, 2], [3, 1], [1, 2]]
    )
    results = []
    for size in (2, 32):
        monkeypatch.setattr(predictor, "CPU_CHUNK", size)
        model = llama()
        found = logprobs_of(Predictor(model), rollout)
        found.sum().backward()
        results.append([found, *(weights.grad for weights in model.parameters())])
    for few, all_at_once in zip(*results, strict=True):
        torch.testing.assert_close(few, all_at_once, atol=1e-6, rtol=1e-5)


def test_a_prompt_and_its_padded_double_differ() -> None:
    """Padding is a token too: the prompts (0, 7) and (7) look the same in ids, not in attention."""
    rollout = rollout_of([[0, 7], [7], [7]], [[1], [1], [1]])
    assert rollout.sequence_BL[:, :2].tolist() == [[0, 7]] * 3
    found = shared_prompts(rollout)
    assert found is not None
    assert found.prompt_B.tolist() == [0, 1, 1]
    assert found.attention_GP.tolist() == [[1, 1], [0, 1]]
    assert shared_prompts(rollout_of([[1], [2]], [[3], [2]])) is None


def with_checkpointing(model: Any) -> Any:
    """As :func:`training.train.prepare._trainable_policy` does it."""
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    remove_dropout(model)
    return model.train()


class Forgetful(LlamaForCausalLM):  # type: ignore[misc]
    """A model that does not read the cache that it returns."""

    def forward(self, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        """Run without the given cache."""
        if past_key_values is not None:
            mask = kwargs.pop("attention_mask")
            kwargs["attention_mask"] = mask[:, -kwargs["input_ids"].shape[1] :]
        return super().forward(*args, **kwargs)


def lora(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))


def others() -> dict[str, Any]:
    """Models that need whole sequences."""
    windows = MistralConfig(**SIZES, sliding_window=4)
    return {
        "gradient checkpointing": lambda: with_checkpointing(llama()),
        "LoRA with gradient checkpointing": lambda: with_checkpointing(lora(llama())),
        "sliding window": lambda: MistralForCausalLM(windows).eval(),
        "no use of the cache": lambda: Forgetful(LlamaConfig(**SIZES)).eval(),
    }


@pytest.mark.parametrize("name", others())
def test_models_that_need_whole_sequences_get_them(name: str) -> None:
    model = others()[name]()
    assert not can_share_prompts(model)
    shapes = tokens_seen(model)
    logprobs_of(Predictor(model), rollout_of([[7, 8]], [[3, 6]]))
    assert shapes == [(2, 8)]


def test_a_model_can_share_once_it_no_longer_checkpoints() -> None:
    model = lora(with_checkpointing(llama()))
    assert not can_share_prompts(model)
    assert can_share_prompts(model.eval())


@pytest.mark.parametrize("half", [False, True])
def test_equal_weights_have_no_kl_though_one_model_checkpoints(half: bool) -> None:
    """Both run over whole sequences then, and are rounded alike."""
    policy, reference = with_checkpointing(llama()), llama()
    terms = terms_of(
        Predictor(policy, autocast=half),
        Predictor(reference, autocast=half),
        rollout_of([[7, 8], [9]], [[3, 6], [2, 2]]),
    )
    assert float(terms.kl_BT.detach().abs().max()) < 1e-9
    assert float(terms.logprob_BT.detach().abs().min()) == 0  # padding
