"""Measured samples, whatever the number of sequences at once, and the progress that is shown meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.train

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from training.configs import EvaluateConfig  # noqa: E402
from training.evaluation import evaluate, measure  # noqa: E402
from training.evaluation.measure import Measurer, PromptSamples  # noqa: E402
from vbon.prompts import Prompt  # noqa: E402
from vbon.work_report import MEASURED_ANSWERS  # noqa: E402

EOS, SAMPLES = 1, 5
PROMPTS = [(Prompt(str(number)), [2 + number, 7]) for number in range(3)]


class Numbers:
    """A tokenizer whose texts are the token ids."""

    eos_token_id, pad_token_id, all_special_ids = EOS, 0, [0, EOS]

    def decode(self, ids: Any, **_: Any) -> str:
        """The ids, separated by spaces."""
        return " ".join(str(int(token)) for token in ids)


class Sums:
    """A reward model that adds the numbers of a text, and cannot score texts with a 2."""

    def score(self, items: Any) -> list[float | None]:
        """One reward per text."""
        texts = [item.completion.split() for item in items]
        return [None if "2" in words else float(sum(map(int, words))) for words in texts]


def tiny_model(seed: int) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, initializer_range=0.5,
        )
    ).eval()  # fmt: skip


def measured(batch_size: int, *, gold: bool = True) -> list[PromptSamples]:
    model: Any = Sums()
    measurer = Measurer(
        tokenizer=Numbers(), reference=tiny_model(1), reward=model, gold=model if gold else None,
        max_new_tokens=6, temperature=1.0, batch_size=batch_size, seed=1,
    )  # fmt: skip
    return measurer.measure(tiny_model(2), PROMPTS, SAMPLES, "policy")


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 10])
@pytest.mark.parametrize("gold", [False, True])
def test_samples_and_figures_do_not_depend_on_the_batch(batch_size: int, gold: bool) -> None:
    """Parts of a prompt, one prompt or two at once; 15 sequences make one batch of all."""
    whole = measured(15, gold=gold)
    assert sum(one.unscored for one in whole) > 0
    assert sum(one.truncated for one in whole) > 0
    for found, expected in zip(measured(batch_size, gold=gold), whole, strict=True):
        assert (found.unscored, found.truncated) == (expected.unscored, expected.truncated)
        assert [ids.tolist() for ids in found.responses] == [
            ids.tolist() for ids in expected.responses
        ]
        assert (found.gold is None) == (expected.gold is None) == (not gold)
        for name in ("rewards", "gold", "ref_logprob", "kl_naive", "kl_rb", "tokens"):
            if gold or name != "gold":
                ours, theirs = getattr(found, name), getattr(expected, name)
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_progress_counts_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences at once: 2 + 2 + 1 of each prompt."""
    shown: list[int] = []

    class Bar:
        def __init__(self, title: str, total: int, work: str) -> None:
            assert (title, total, work) == ("policy", 15, MEASURED_ANSWERS)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, count: int) -> None:
            shown.append(count)

    monkeypatch.setattr(measure, "ProgressBar", Bar)
    measured(2)
    assert shown == [2, 2, 1] * 3


def test_a_given_batch_is_kept_and_a_large_model_gets_a_smaller_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []

    def sized(model: object, tokens: int, largest: int) -> int:
        asked.append((tokens, largest))
        return 64

    monkeypatch.setattr(evaluate, "measuring_batch", sized)
    assert evaluate._batch_size(EvaluateConfig(batch_size=512), None) == 512
    assert evaluate._batch_size(EvaluateConfig(max_new_tokens=24), None) == 64
    assert asked == [(24, 512)]
    # The size changes no result, so an earlier evaluation of the same files still counts.
    assert EvaluateConfig().model_dump()["batch_size"] == 512
