"""Captured nats of real model classes on samples whose best of N is known, and where they are shown."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.train

from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

from training.configs import EvaluateConfig  # noqa: E402
from training.evaluation import captured, evaluate  # noqa: E402
from training.evaluation.captured import ReferenceSamples, measure_captured_nats  # noqa: E402
from training.evaluation.measure import PromptSamples  # noqa: E402
from training.evaluation.rows import evaluation_rows  # noqa: E402
from training.train import run as training_run  # noqa: E402
from training.train.export import _captured_facts  # noqa: E402
from training.train.heldout import measure_captured  # noqa: E402
from vbon.errors import DataError  # noqa: E402
from vbon.maths.distribution import kl_upper_bound  # noqa: E402

TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=0)
PROMPT = [1, 2]
RESPONSES = [[3, 0], [4, 5, 0], [0], [6, 6, 6, 0]]
REWARDS = np.array([0.0, 3.0, 1.0, 2.0])
# Of 4 samples, the k-th from below (from 0) is the best of 2 in k of 6 pairs.
WEIGHTS = np.array([0, 3, 1, 2]) / 6


def model(seed: int) -> Any:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=8, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    ).eval()


def log_probability(policy: Any, response: list[int], temperature: float) -> float:
    """One sequence at a time, without padding."""
    with torch.no_grad():
        logits = policy(torch.tensor([PROMPT + response])).logits[0] / temperature
    logs = torch.log_softmax(logits.double(), -1)
    return sum(float(logs[len(PROMPT) - 1 + place, token]) for place, token in enumerate(response))


def reference_samples(reference: Any, temperature: float) -> ReferenceSamples:
    logprob = np.array([log_probability(reference, one, temperature) for one in RESPONSES])
    return ReferenceSamples(PROMPT, REWARDS, RESPONSES, logprob)


class Cache:
    """Two prompts with the samples above, without or with stored log p."""

    has_responses = True

    def __init__(self, stored: np.ndarray | None = None) -> None:
        self.stored = stored

    def __len__(self) -> int:
        return 2

    def prompt_ids(self, row: int) -> list[int]:
        return PROMPT

    def rewards(self, row: int) -> np.ndarray:
        return REWARDS

    def responses(self, row: int) -> list[list[int]]:
        return RESPONSES

    def ref_logprob(self, row: int) -> np.ndarray | None:
        return self.stored


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padding_and_temperature_change_nothing(temperature: float) -> None:
    reference, policy = model(0), model(1)
    sets = {"cache": [reference_samples(reference, temperature)] * 2}
    found = measure_captured_nats(policy, TOKENIZER, sets, num_samples=2, temperature=temperature)
    ratios = [
        log_probability(policy, one, temperature) - log_probability(reference, one, temperature)
        for one in RESPONSES
    ]
    assert found.cache is not None
    assert found.cache.mean == pytest.approx(float(WEIGHTS @ ratios), abs=1e-5)
    assert (found.n, found.most) == (2, kl_upper_bound(2))
    assert (found.fresh, found.heldout, found.memorised) == (None, None, None)
    still = measure_captured_nats(
        reference, TOKENIZER, sets, num_samples=2, temperature=temperature
    )
    assert still.cache is not None
    assert still.cache.mean == pytest.approx(0, abs=1e-5)


def test_cached_samples_get_log_p_only_where_they_can_be_the_best() -> None:
    reference = model(0)
    logprob = reference_samples(reference, 1.0).ref_logprob

    def samples(cache: Cache, **changes: Any) -> list[ReferenceSamples]:
        wanted = {"num_samples": 2, "temperature": 1.0, "prompts": 9, "samples": 9} | changes
        return captured.samples_of_cache(cache, reference, TOKENIZER, **wanted)  # type: ignore[arg-type]

    computed, stored = samples(Cache()), samples(Cache(logprob))
    assert len(computed) == 2
    assert math.isnan(computed[0].ref_logprob[0])
    assert computed[0].ref_logprob[1:] == pytest.approx(logprob[1:], abs=1e-5)
    assert stored[0].ref_logprob == pytest.approx(logprob)
    part = samples(Cache(logprob), prompts=1, samples=3)
    assert [len(one.rewards) for one in part] == [len(one.responses) for one in part] == [3]


def test_memorising_is_the_difference_on_the_same_prompts() -> None:
    reference, policy = model(0), model(1)
    one = reference_samples(reference, 1.0)
    other = ReferenceSamples(PROMPT, -REWARDS, RESPONSES, one.ref_logprob)
    found = measure_captured_nats(
        policy, TOKENIZER, {"cache": [one, one], "fresh": [other, one]},
        num_samples=2, temperature=1.0,
    )  # fmt: skip
    assert found.cache is not None
    assert found.fresh is not None
    assert found.memorised is not None
    assert found.memorised.mean == pytest.approx(found.cache.mean - found.fresh.mean)
    # On the second prompt, both have the same samples.
    assert 0 in (pytest.approx(found.memorised.low), pytest.approx(found.memorised.high))


def test_too_few_samples_are_an_error_of_evaluate_and_leave_out_a_figure_of_training() -> None:
    one = reference_samples(model(0), 1.0)
    with pytest.raises(DataError, match=r"best-of-5 need 5 scored samples .* has 4"):
        captured.check_enough_samples({"fresh": [one]}, 5)
    captured.check_enough_samples({"fresh": [one]}, 4)
    inputs: Any = SimpleNamespace(
        cache=Cache(), heldout=[], reference=model(0), tokenizer=TOKENIZER,
        config=SimpleNamespace(temperature=1.0),
    )  # fmt: skip
    assert measure_captured(model(1), inputs, 5) is None
    assert measure_captured(model(1), inputs, None) is None
    found = measure_captured(model(1), inputs, 4)
    assert found is not None
    assert found.cache is not None
    facts = _captured_facts(found)
    assert list(facts.values()) == [found.cache]
    assert "training cache" in next(iter(facts))
    assert _captured_facts(None) == {}


def test_training_measures_its_cache_and_its_held_out_samples() -> None:
    reference = model(0)
    logprob = reference_samples(reference, 1.0).ref_logprob
    zeros = np.zeros(4)
    measured = PromptSamples(
        -REWARDS, None, logprob, zeros, zeros, zeros, 0,
        responses=[np.array(one, np.int32) for one in RESPONSES],
    )  # fmt: skip
    inputs: Any = SimpleNamespace(
        cache=Cache(), heldout=[(None, PROMPT)], heldout_reference=[measured],
        reference=reference, tokenizer=TOKENIZER, config=SimpleNamespace(temperature=1.0),
    )  # fmt: skip
    found = measure_captured(model(1), inputs, 2)
    assert found is not None
    assert found.cache is not None
    assert found.heldout is not None
    ratios = np.array([log_probability(model(1), one, 1.0) for one in RESPONSES]) - logprob
    assert found.cache.mean == pytest.approx(float(WEIGHTS @ ratios), abs=1e-5)
    weights = np.array([3, 0, 2, 1]) / 6
    assert found.heldout.mean == pytest.approx(float(weights @ ratios), abs=1e-5)
    assert len(_captured_facts(found)) == 2


def test_table_has_a_line_for_every_checkpoint() -> None:
    rewards, zeros = np.arange(8.0), np.zeros(8)
    samples = [PromptSamples(rewards, None, zeros, zeros, zeros, zeros, 0)] * 3
    rows = evaluation_rows(samples, {"one": samples, "two": samples}, 4)
    nats = measure_captured_nats(
        model(1), TOKENIZER, {"cache": [reference_samples(model(0), 1.0)]},
        num_samples=4, temperature=1.0,
    )  # fmt: skip
    rows = [
        row.model_copy(update={"captured_nats": nats if row.method == "two" else None})
        for row in rows
    ]
    table = evaluate.captured_table(rows, 4)
    cells = [list(column.cells) for column in table.columns]
    assert [column[0] for column in cells] == ["two", str(nats.cache), "-", "-", "-"]
    assert table.row_count == 1
    assert f"{kl_upper_bound(4):.3f}" in str(table.title)


def test_evaluations_without_captured_nats_keep_their_record() -> None:
    """The settings that did not exist then are left out, so earlier results still count."""
    assert not {"captured_nats", "cache"} & EvaluateConfig().model_dump(mode="json").keys()
    asked = EvaluateConfig(captured_nats=True, cache=Path("c.jsonl")).model_dump(mode="json")
    assert (asked["captured_nats"], asked["cache"]) == (True, "c.jsonl")
    with pytest.raises(ValueError, match="add --captured-nats"):
        EvaluateConfig(cache=Path("c.jsonl"))


def test_a_run_without_held_out_prompts_takes_no_passes_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They would take longer than a short training of a real language model."""
    asked: list[object] = []
    monkeypatch.setattr(training_run, "measure_captured", lambda *found: asked.append(found))
    objective = SimpleNamespace(num_samples=4)
    for heldout, passes in ([], 0), ([(None, PROMPT)], 1):
        spec = SimpleNamespace(inputs=SimpleNamespace(heldout=heldout), objective=objective)
        trainer = SimpleNamespace(sharded=False, unwrapped=None)
        run: Any = SimpleNamespace(spec=spec, trainer=trainer)
        assert training_run._captured(run, None) is None
        assert len(asked) == passes
