"""Classifiers that were trained with EOS after each text are scored with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.train

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from vbon.errors import CheckpointError  # noqa: E402
from vbon.prompts import Prompt  # noqa: E402
from vbon.rewards import Scorable, open_reward_model  # noqa: E402
from vbon.rewards.classifier import is_trained_with_eos  # noqa: E402
from vbon.rewards.registry import classifier_path  # noqa: E402

WORDS = ["<pad>", "<eos>", "the", "film", "was", "good", "bad", "dull"]
CARD = "---\ntags:\n- trl\n- reward-trainer\n---\n### Framework versions\n\n- TRL: {}\n"
ITEMS = [
    Scorable(Prompt(text="the film"), text) for text in (" was good", " was dull", " bad", " good")
]


def llama(directory: Path, *, pad: str | None = "<pad>", eos: str | None = "<eos>") -> Path:
    """A random Llama with one logit, and a tokenizer of words."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_labels=1,
        num_attention_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=1,
        pad_token_id=None if pad is None else WORDS.index(pad),
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(directory)
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=pad, eos_token=eos).save_pretrained(
        directory
    )
    return directory


def expected(directory: Path, *, eos: bool) -> list[float]:
    """The logit at each text's last token, one text at a time."""
    model = LlamaForSequenceClassification.from_pretrained(directory).eval()
    found = []
    for item in ITEMS:
        ids = [WORDS.index(word) for word in (str(item.prompt.text) + item.completion).split()]
        ids += [1] if eos else []
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids])).last_hidden_state
            found.append(float(model.score(hidden)[0, -1, 0]))
    return found


def scores(spec: str) -> list[float | None]:
    model = open_reward_model(spec)
    model.load()
    together = model.score(ITEMS)
    assert [model.score([item])[0] for item in ITEMS] == pytest.approx(together, abs=1e-5)
    return together


@pytest.mark.parametrize("pad", ["<pad>", "<eos>", None])
@pytest.mark.parametrize(
    ("scheme", "eos"), [("", False), ("without-eos:", False), ("with-eos:", True)]
)
def test_a_setting_says_whether_eos_ends_a_text(
    tmp_path: Path, scheme: str, eos: bool, pad: str | None
) -> None:
    llama(tmp_path, pad=pad)
    assert scores(f"{scheme}{tmp_path}") == pytest.approx(expected(tmp_path, eos=eos), abs=1e-5)


def test_the_scores_of_a_text_with_and_without_it_differ(tmp_path: Path) -> None:
    llama(tmp_path)
    plain, ended = expected(tmp_path, eos=False), expected(tmp_path, eos=True)
    assert plain != pytest.approx(ended, abs=1e-3)


@pytest.mark.parametrize(
    ("card", "pad", "eos"),
    [
        (CARD.format("1.16.0"), "<pad>", True),
        (CARD.format("1.0.0"), None, True),
        (CARD.format("0.12.2"), "<pad>", False),
        (CARD.format("1.16.0").replace("reward-trainer", "sft"), "<pad>", False),
        (CARD.format("1.16.0"), "<eos>", False),  # the trainer took its EOS for padding
        ("no front matter", "<pad>", False),
    ],
)
def test_the_card_of_trl_says_it(tmp_path: Path, card: str, pad: str | None, eos: bool) -> None:
    llama(tmp_path, pad=pad)
    (tmp_path / "README.md").write_text(card)
    assert is_trained_with_eos(str(tmp_path)) == eos
    assert scores(str(tmp_path)) == pytest.approx(expected(tmp_path, eos=eos), abs=1e-5)
    plain = open_reward_model(f"without-eos:{tmp_path}").revision
    assert open_reward_model(str(tmp_path)).revision == plain + ("+eos" if eos else "")


def test_a_chat_ends_as_its_template_writes_it(tmp_path: Path) -> None:
    llama(tmp_path)
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    assert scores(f"with-eos:{tmp_path}") == pytest.approx(expected(tmp_path, eos=False), abs=1e-5)


def test_without_an_eos_token_it_cannot_be_appended(tmp_path: Path) -> None:
    llama(tmp_path, eos=None)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config.get("eos_token") is None
    with pytest.raises(CheckpointError, match="has no EOS"):
        open_reward_model(f"with-eos:{tmp_path}").load()


@pytest.mark.parametrize(
    ("spec", "path"),
    [("with-eos:a/b", "a/b"), ("without-eos:a", "a"), ("a/b", "a/b"), ("python:m:f", None)],
)
def test_memory_is_reserved_for_the_classifier_that_is_named(spec: str, path: str | None) -> None:
    assert classifier_path(spec) == path
