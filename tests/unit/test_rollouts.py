"""The texts of samples, and the policy that draws them in training."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.train

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast  # noqa: E402

from training.rollouts.rollout import response_logits, rollout_of, terms_of  # noqa: E402
from training.train.dropout import remove_dropout  # noqa: E402

VOCAB = ["<eos>", "▁the", "▁film", "▁was", "▁good", "▁bad", "ish", "▁"]


def llama_tokenizer() -> Any:
    """A tokenizer whose decoder strips one leading space, as Llama 2's and Mistral 0.1's do."""
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCAB)}, unk_token="▁"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>")


def test_samples_are_decoded_after_their_prompts() -> None:
    """The prompts are padded to one width, and two prompts have two samples each."""
    tokenizer = llama_tokenizer()
    longer, shorter = tokenizer("the film was")["input_ids"], tokenizer("good")["input_ids"]
    assert (longer, shorter) == ([1, 2, 3], [4])
    rollout = rollout_of(
        [longer, longer, shorter, shorter], [[4, 0], [6], [6, 0], [3, 5, 0]], tokenizer,
        torch.device("cpu"),
    )  # fmt: skip
    assert rollout.texts(tokenizer) == [" good", "ish", "ish", " was bad"]


def test_a_policy_in_training_mode_has_no_dropout() -> None:
    """Equal weights have a KL of 0 in training mode; with GPT-2's dropout it is far from 0."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.5
    policy, reference = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    reference.load_state_dict(policy.state_dict())
    reference.eval()
    remove_dropout(policy)
    policy.train()
    rollout = rollout_of([[1, 2]], [[3, 4, 5, 0]], llama_tokenizer(), torch.device("cpu"))
    terms = terms_of(
        lambda part: response_logits(policy, part),
        lambda part: response_logits(reference, part),
        rollout,
    )
    assert float(terms.kl_BT.detach().abs().sum()) == pytest.approx(0, abs=1e-6)
    assert policy.config.resid_pdrop == 0.5


def test_rates_that_are_numbers_count_as_dropout() -> None:
    """Llama's attention keeps its rate as a number; mixtures of experts have a router jitter."""
    layer = torch.nn.Linear(1, 1)
    layer.attention_dropout, layer.layerdrop, layer.router_jitter_noise = 0.1, 0.2, 0.3
    layer.scale = 0.4
    remove_dropout(layer)
    assert (layer.attention_dropout, layer.layerdrop, layer.router_jitter_noise) == (0, 0, 0)
    assert layer.scale == 0.4
