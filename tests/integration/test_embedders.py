"""Embedders that run a model, on models made here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from vbon.embedders import open_embedder
from vbon.embedders.cosine import cosine
from vbon.errors import CheckpointError

pytestmark = pytest.mark.train

WORDS = ("the", "film", "was", "a", "good", "bad", "dull", "superb", "odd", "warm", "cold", "story")
TEXTS = [
    " ".join(WORDS[start : start + length]) for start in range(8) for length in (1, 3, 6, 2, 5)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random causal language model whose states differ from word to word; its tokenizer adds `<s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("embedder")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def mean_state(model: str, text: str) -> np.ndarray:
    """By transformers, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.inference_mode():
        states = AutoModel.from_pretrained(model)(**tokenizer(text, return_tensors="pt"))
    return states.last_hidden_state[0].mean(dim=0).double().numpy()


async def test_hidden_states_are_means_less_one_constant(model: str) -> None:
    """Texts of several lengths in several batches: neither padding nor company changes a row."""
    embedder = open_embedder(f"hidden:{model}")
    rows = await embedder.embed(TEXTS)
    assert rows.shape == (40, 32)
    constant = mean_state(model, TEXTS[0]) - rows[0]
    for text, row in list(zip(TEXTS, rows, strict=True))[1::7]:
        np.testing.assert_allclose(mean_state(model, text) - row, constant, atol=1e-5)
        np.testing.assert_allclose((await embedder.embed([text]))[0], row, atol=1e-5)


async def test_the_constant_is_the_models_own(model: str) -> None:
    first, second = [await open_embedder(f"hidden:{model}").embed(TEXTS[:2]) for _ in range(2)]
    np.testing.assert_array_equal(first, second)
    assert np.linalg.norm(mean_state(model, TEXTS[0]) - first[0]) > 0.1


async def test_cosines_of_hidden_states(model: str) -> None:
    embedder = open_embedder(f"hidden:{model}")
    same = cosine(await embedder.embed(["good film", "good film"]))
    np.testing.assert_allclose(same, 1.0)
    pair = cosine(await embedder.embed(["good film", "a dull story"]))[0, 1]
    assert -0.99 < pair < 0.99
    # What is common to all texts is gone: without that, cosines of many texts are far from 0.
    many = cosine(await embedder.embed(TEXTS))
    raw = cosine(np.stack([mean_state(model, text) for text in TEXTS]))
    off_diagonal = ~np.eye(len(TEXTS), dtype=bool)
    assert abs(many[off_diagonal].mean()) < abs(raw[off_diagonal].mean())


async def test_an_empty_text_is_like_nothing(model: str) -> None:
    rows = await open_embedder(f"hidden:{model}").embed(["", "good film"])
    assert not rows[0].any()
    assert rows[1].any()
    assert (await open_embedder(f"hidden:{model}").embed([""])).shape == (1, 32)


async def test_sentence_embeddings(model: str, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    sentence_transformers.SentenceTransformer(model).save(str(tmp_path))
    embedder = open_embedder(f"sentences:{tmp_path}")
    rows = await embedder.embed(TEXTS)
    assert rows.shape == (40, 32)
    for text, row in list(zip(TEXTS, rows, strict=True))[::7]:
        np.testing.assert_allclose((await embedder.embed([text]))[0], row, atol=1e-5)
    np.testing.assert_allclose(cosine(await embedder.embed(["good film"] * 2)), 1.0)


async def test_sentence_embeddings_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(CheckpointError, match="pip install sentence-transformers"):
        await open_embedder("sentences:any").embed(["good film"])
