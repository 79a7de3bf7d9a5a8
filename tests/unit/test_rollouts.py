"""The texts of samples."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.train

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from training.rollouts.rollout import rollout_of  # noqa: E402

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
