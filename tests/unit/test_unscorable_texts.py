"""A text that a reward model cannot score gets no score; the other texts of its batch keep theirs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from vbon.errors import RewardError
from vbon.prompts import Prompt
from vbon.rewards import RewardModel, Scorable, open_reward_model
from vbon.rewards.isolation import IsolatedReward
from vbon.rewards.remote import RemoteReward

CALLABLES = """
calls = []

def scored(prompts, completions):
    calls.append(len(completions))
    if any("bad" in completion for completion in completions):
        raise IndexError("index out of range in self")
    return [float(len(completion)) for completion in completions]
"""


class Plugin:
    """A plug-in's model that fails on the word "bad"."""

    name, revision = "plugin", "1"

    def __init__(self, error: type[Exception]) -> None:
        self._error = error

    def load(self) -> None:
        """Nothing to load."""

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        if any("bad" in item.completion for item in items):
            raise self._error("a bad text")
        return [float(len(item.completion)) for item in items]

    def close(self) -> None:
        """Nothing to release."""


def of_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RewardModel:
    sys.modules.pop("picky_rewards", None)
    (tmp_path / "picky_rewards.py").write_text(CALLABLES)
    monkeypatch.syspath_prepend(tmp_path)
    return open_reward_model("python:picky_rewards:scored")


def of_remote(status: int) -> Callable[[Path, pytest.MonkeyPatch], RewardModel]:
    def answer(request: httpx.Request) -> httpx.Response:
        completions = json.loads(request.content)["completions"]
        if any("bad" in completion for completion in completions):
            return httpx.Response(status, json={"error": "the text is too long"})
        return httpx.Response(200, json={"rewards": [float(len(text)) for text in completions]})

    def made(_: Path, __: pytest.MonkeyPatch) -> RewardModel:
        return RemoteReward("http://scorer/score", transport=httpx.MockTransport(answer))

    return made


def of_plugin(_: Path, __: pytest.MonkeyPatch) -> RewardModel:
    return IsolatedReward(Plugin(KeyError))


def items_of(*texts: str) -> list[Scorable]:
    return [Scorable(Prompt(text="p"), text) for text in texts]


@pytest.mark.parametrize(
    "kind", [of_callable, of_remote(400), of_remote(413), of_remote(422), of_remote(500), of_plugin]
)
def test_only_the_text_at_fault_has_no_score(
    kind: Callable[[Path, pytest.MonkeyPatch], RewardModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = kind(tmp_path, monkeypatch)
    model.load()
    with pytest.raises(RewardError):  # no text has been scored yet: the model may be at fault
        model.score(items_of("bad"))
    with caplog.at_level(logging.WARNING):
        assert model.score(items_of("a", "bb", "bad", "cccc", "bad one")) == [1, 2, None, 4, None]
    assert "such texts get no reward" in caplog.text
    assert model.score(items_of("bad")) == [None]
    assert model.score(items_of("bad", "bad")) == [None, None]
    assert model.score([]) == []


@pytest.mark.parametrize("status", [401, 403, 404, 429, 502, 503, 504])
def test_other_errors_of_a_server_fail_the_batch_and_are_not_repeated(status: int) -> None:
    calls = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(status)

    model = RemoteReward("http://scorer/score", transport=httpx.MockTransport(answer))
    with pytest.raises(RewardError, match=str(status)):
        model.score(items_of("a", "b", "c"))
    assert len(calls) == 1


def test_a_model_that_fails_on_a_text_it_scored_before_is_at_fault_itself() -> None:
    broken, sizes = False, []

    def answer(request: httpx.Request) -> httpx.Response:
        completions = json.loads(request.content)["completions"]
        sizes.append(len(completions))
        return httpx.Response(500 if broken else 200, json={"rewards": [1.0] * len(completions)})

    model = RemoteReward("http://scorer/score", transport=httpx.MockTransport(answer))
    assert model.score(items_of("a", "b")) == [1.0, 1.0]
    broken = True
    with pytest.raises(RewardError, match="500"):
        model.score(items_of("a", "b", "c", "d"))
    assert sizes == [2, 4, 1]  # the batch, then only the text that was scored before


def test_the_search_for_a_text_at_fault_halves_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_callable(tmp_path, monkeypatch)
    model.load()
    model.score(items_of("a"))
    texts = ["x"] * 64
    texts[17] = "bad"
    scores = model.score(items_of(*texts))
    assert scores == [None if text == "bad" else 1.0 for text in texts]
    # After the whole batch the text that was scored before, then two halves at each of six levels.
    calls = sys.modules["picky_rewards"].calls
    assert calls[-14:] == [64, 1, 32, 16, 16, 8, 4, 2, 1, 1, 2, 4, 8, 32]


def test_a_plugin_that_says_the_batch_failed_is_not_asked_again() -> None:
    model = IsolatedReward(Plugin(RewardError))
    assert model.score(items_of("a")) == [1]
    with pytest.raises(RewardError, match="a bad text"):
        model.score(items_of("a", "bad"))


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = {
    "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 8, "num_labels": 1, "max_position_embeddings": 20,
}  # fmt: skip
# A config of each way to number positions; those of RoBERTa start after the padding id.
FAMILIES: dict[str, dict[str, Any]] = {
    "Roberta": {"pad_token_id": 1},
    "XLMRoberta": {"pad_token_id": 1},
    "Camembert": {"pad_token_id": 1},
    "RobertaPreLayerNorm": {"pad_token_id": 1},
    "Data2VecText": {"pad_token_id": 3},
    "MPNet": {"pad_token_id": 1},
    "IBert": {"pad_token_id": 1},
    "Esm": {"pad_token_id": 1, "mask_token_id": 2, "position_embedding_type": "absolute"},
    "Bert": {},
    "Electra": {"embedding_size": 8},
    "GPT2": {"n_positions": 20},
    "OPT": {"ffn_dim": 8, "word_embed_proj_dim": 8, "pad_token_id": 1},
}


def tiny_classifier(family: str) -> Any:
    values = {**TINY, **FAMILIES[family]}
    config = getattr(transformers, f"{family}Config")(**values)
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForSequenceClassification")(config).eval()


def accepts(model: Any, length: int) -> bool:
    model.config.pad_token_id = -1  # the text has no padding
    try:
        with torch.no_grad():
            logits = model(
                input_ids=torch.full((1, length), 7), attention_mask=torch.ones(1, length).long()
            ).logits
    except (IndexError, RuntimeError):
        return False
    return bool(torch.isfinite(logits).all())


@pytest.mark.train
@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_text_is_the_longest_that_the_model_accepts(family: str) -> None:
    from vbon.rewards.classifier import max_tokens_of

    model = tiny_classifier(family)
    longest = max(length for length in range(1, 30) if accepts(model, length))
    assert longest < 29  # the model has a limit
    assert max_tokens_of(model) == longest


@pytest.mark.train
@pytest.mark.parametrize("family", ["XLNet", "T5"])
def test_a_model_without_a_limit_takes_long_texts(family: str) -> None:
    from vbon.rewards.classifier import max_tokens_of

    config = getattr(transformers, f"{family}Config")(
        vocab_size=40, d_model=8, n_layer=1, n_head=2, d_inner=8, d_ff=8, d_kv=4, num_layers=1,
        num_heads=2, num_labels=1,
    )  # fmt: skip
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    assert max_tokens_of(model) >= 10**6


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa of 20 positions, of which 18 are usable, with a tokenizer of words and no special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory = tmp_path_factory.mktemp("roberta")
    tiny_classifier("Roberta").save_pretrained(directory)
    words = ["<s>", "<pad>", "</s>", *(f"w{i}" for i in range(37))]
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<s>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(directory)
    return directory


@pytest.mark.train
def test_texts_between_the_usable_and_all_positions_of_a_roberta_have_no_score(
    roberta: Path,
) -> None:
    model = open_reward_model(str(roberta))
    model.load()
    texts = [" ".join(["w5"] * length) for length in (3, 17, 18, 19, 20, 21)]
    scores = model.score([Scorable(Prompt(text=""), text) for text in texts])
    assert [score is None for score in scores] == [False] * 3 + [True] * 3


@pytest.mark.train
def test_a_text_on_which_a_classifier_fails_has_no_score(
    roberta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbon.rewards.classifier import ClassifierReward

    model = ClassifierReward(str(roberta))
    model.load()
    good = model.score(items_of(" w1", " w2 w3"))
    # As a tokenizer with more tokens than its model has: the lookup of the last one fails.
    embedding = model._model.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(embedding.weight[:39].detach())
    together = model.score(items_of(" w1", " w36 w1", " w2 w3", " w36"))
    assert [together[0], together[2]] == pytest.approx(good, abs=1e-5)
    assert [together[1], together[3]] == [None, None]
    # A tokenizer that raises an error about one text.
    tokenizer = model._tokenizer

    def picky(texts: list[str], **options: Any) -> Any:
        if any("w4" in text for text in texts):
            raise TypeError("TextInputSequence must be str")
        return tokenizer(texts, **options)

    picky.chat_template, picky.eos_token_id = None, 2  # type: ignore[attr-defined]
    picky.pad_token_id = 1  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "_tokenizer", picky)
    found = model.score(items_of(" w1", " w4"))
    assert found == [pytest.approx(good[0], abs=1e-5), None]
