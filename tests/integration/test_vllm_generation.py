"""vLLM as the trainer's sampler: it follows the weights, repeats itself, and ends where it should."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")
pytestmark = [pytest.mark.train, pytest.mark.vllm]

from tests.tiny import train_config  # noqa: E402
from training.rollouts.load_policy import load_policy  # noqa: E402
from training.rollouts.predictor import Predictor, logprobs_of  # noqa: E402
from training.rollouts.rollout import Rollout  # noqa: E402
from training.rollouts.vllm_generator import VllmGenerator, merged_weights  # noqa: E402
from training.train.run import train  # noqa: E402
from vbon.errors import InvalidInputError, PromptTooLongError  # noqa: E402

TEXTS = ("the film was", "in this old french")
TEMPERATURE, NEW_TOKENS = 0.9, 12
# Samples of each prompt, and standard errors beyond which a test fails: a false alarm below 1e-4.
SAMPLES = 400
ALARM = 4.0


@pytest.fixture(scope="module")
def generator(sandbox: Path) -> Iterator[VllmGenerator]:
    """The one engine of this module."""
    _, tokenizer, _ = load_policy(str(sandbox / "policy"))
    config = train_config(
        sandbox, sandbox / "unused", "kl-rl", temperature=TEMPERATURE, max_new_tokens=NEW_TOKENS
    )
    generator = VllmGenerator(config.policy, tokenizer, config, logprobs=True)
    yield generator
    generator.close()
    generator.close()


@pytest.fixture
def policy(sandbox: Path) -> Any:
    return load_policy(str(sandbox / "policy"))[0]


@pytest.fixture(scope="module")
def prompts(sandbox: Path) -> list[list[int]]:
    tokenizer = load_policy(str(sandbox / "policy"))[1]
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def disturbed(model: Any, size: float) -> Any:
    """A copy with every matrix a little off, the tied embedding among them."""
    source = torch.Generator().manual_seed(0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=source)
            parameter.add_(noise * parameter.std() * size if parameter.ndim > 1 else noise * 0)
    return other


def logprob(model: Any, rollout: Rollout) -> Any:
    """``log`` probability of each response, shape (B,), at the sampling temperature."""
    with torch.no_grad():
        tokens = logprobs_of(Predictor(model, TEMPERATURE), rollout)
    return tokens.sum(1).double()


def assert_drawn_from(first: Any, of_first: Rollout, second: Any, of_second: Rollout) -> None:
    """Each rollout is of its own model: a two-sample test of an identity between the two models.

    With ``m`` and ``o`` their distributions, ``E_m[o / (m + o)] = E_o[m / (m + o)]``, both the sum of
    ``m o / (m + o)``. All values are within [0, 1], so ALARM standard errors are rarely passed. Samples
    of stale weights would give u and 1 - u, which differ as the models do.
    """
    u = torch.sigmoid(logprob(second, of_first) - logprob(first, of_first))
    v = torch.sigmoid(logprob(first, of_second) - logprob(second, of_second))
    error = float((u.var() / len(u) + v.var() / len(v)) ** 0.5)
    # 1 - 2u is then at least twice what passes below.
    assert float(u.mean()) + ALARM * error < 0.5, "the models must differ enough to tell"
    assert abs(float(u.mean() - v.mean())) < ALARM * error


def assert_first_tokens(model: Any, prompt: list[int], tokens: Any) -> None:
    """Chi-square against the exact distribution at the sampling temperature."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    p = torch.softmax(logits / TEMPERATURE, -1)
    # Twenty bins of like weight: most of a vocabulary is too rare for bins of its own.
    order = p.argsort(descending=True)
    bins = (p[order].cumsum(0) * 20).long().clamp(max=19)
    counts = torch.bincount(tokens, minlength=len(p)).double()[order]
    expected, observed = torch.zeros(20).double(), torch.zeros(20).double()
    expected.index_add_(0, bins, p[order] * len(tokens))
    observed.index_add_(0, bins, counts)
    expected, observed = expected[expected >= 5], observed[expected >= 5]
    statistic, freedom = float(((observed - expected) ** 2 / expected).sum()), len(expected) - 1
    # Wilson-Hilferty: the .9999 quantile of chi-square.
    assert freedom >= 5
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.719 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_samples_follow_the_weights(
    generator: VllmGenerator, policy: Any, prompts: list[list[int]]
) -> None:
    """Two models by turns, as a moving anchor and a policy are; then one changed in place."""
    old, other = copy.deepcopy(policy), disturbed(policy, 1.6)
    before = generator.syncs
    of_policy = generator.sample(policy, prompts, SAMPLES, [0, 1])
    of_other = generator.sample(other, prompts, SAMPLES, [2, 3])
    assert_drawn_from(policy, of_policy, other, of_other)
    assert_first_tokens(policy, prompts[0], of_policy.response_BT[:SAMPLES, 0])
    assert_first_tokens(other, prompts[0], of_other.response_BT[:SAMPLES, 0])
    optimizer = torch.optim.AdamW(policy.requires_grad_(True).parameters(), lr=2e-2)
    ids = torch.tensor([prompts[0]])
    policy(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    of_stepped = generator.sample(policy, prompts, SAMPLES, [4, 5])
    assert_drawn_from(policy, of_stepped, old, of_policy)
    assert generator.syncs == before + 3
    generator.sample(policy, prompts, 2, [0, 1])
    assert generator.syncs == before + 3  # unchanged weights are not loaded again


def test_a_lora_is_merged_on_the_way_and_left_alone(
    generator: VllmGenerator, policy: Any, prompts: list[list[int]]
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    tuned = get_peft_model(copy.deepcopy(policy), lora)
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    given = dict(merged_weights(tuned))
    expected = copy.deepcopy(tuned).merge_and_unload()
    assert set(given) == {name for name, _ in expected.named_parameters()}
    for name, value in expected.named_parameters():
        torch.testing.assert_close(given[name], value)
    of_tuned = generator.sample(tuned, prompts, SAMPLES, [6, 7])
    of_policy = generator.sample(policy, prompts, SAMPLES, [8, 9])
    assert_drawn_from(tuned, of_tuned, policy, of_policy)
    for name, value in tuned.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_adapter_that_cannot_be_merged_is_refused(policy: Any) -> None:
    from peft import LoraConfig, get_peft_model

    dora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=True)
    with pytest.raises(InvalidInputError, match="generation transformers"):
        list(merged_weights(get_peft_model(policy, dora)))


def test_same_seeds_same_samples(
    generator: VllmGenerator, policy: Any, prompts: list[list[int]]
) -> None:
    first, again = [generator.sample(policy, prompts, 8, [1, 2]) for _ in range(2)]
    assert torch.equal(first.sequence_BL, again.sequence_BL)
    swapped = generator.sample(policy, prompts[::-1], 8, [2, 1])
    tokenizer = generator._tokenizer
    assert swapped.texts(tokenizer) == first.texts(tokenizer)[8:] + first.texts(tokenizer)[:8]
    assert len(set(first.texts(tokenizer))) > 8  # samples of one prompt have seeds of their own


def test_lengths_and_ends(generator: VllmGenerator, policy: Any, prompts: list[list[int]]) -> None:
    rollout = generator.sample(policy, prompts, 64, [7, 8])
    tokenizer = generator._tokenizer
    reasons = rollout.finish_reasons(tokenizer)
    assert set(reasons) == {"stop", "length"}
    for row, reason in enumerate(reasons):
        mask = rollout.mask_BT[row]
        ids = rollout.response_BT[row][mask].tolist()
        assert mask.tolist() == [True] * len(ids) + [False] * (len(mask) - len(ids))
        assert tokenizer.eos_token_id not in ids[:-1]
        assert (ids[-1] == tokenizer.eos_token_id) == (reason == "stop")
        assert reason == "stop" or len(ids) == NEW_TOKENS
        prompt = prompts[row // 64]
        kept = rollout.sequence_BL[row][rollout.attention_BL[row].bool()].tolist()
        assert kept == prompt + ids
    assert rollout.sampled_logprob_BT is not None
    torch.testing.assert_close(
        rollout.sampled_logprob_BT.double().sum(1), logprob(policy, rollout), atol=1e-3, rtol=1e-4
    )
    with pytest.raises(PromptTooLongError):
        generator.sample(policy, [prompts[0] * 40], 1, [0])


def test_a_run_with_vllm(
    generator: VllmGenerator, sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's own path, on this module's engine: a second start would cost half a minute."""
    monkeypatch.setattr(
        "training.rollouts.vllm_generator.VllmGenerator", lambda *_, **__: generator
    )
    monkeypatch.setattr(generator, "close", lambda: None)
    before = generator.syncs
    out = tmp_path / "rl"
    config = train_config(
        sandbox,
        out,
        "kl-rl",
        steps=3,
        generation="vllm",
        warm_start_steps=0,
        heldout=None,
        temperature=1.0,
        max_new_tokens=NEW_TOKENS,
    )
    train("kl-rl", config)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert len(history) == 3
    assert history[0]["kl_nats"] == pytest.approx(0.0, abs=1e-6)
    assert generator.syncs - before in (3, 4)  # and once more for the last check of the KL
    for row in history:
        assert row["samples_drawn"] == 16
        assert 1 <= row["response_tokens"] <= NEW_TOKENS
        assert 0 <= row["kl_nats"] < 1
