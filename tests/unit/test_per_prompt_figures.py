"""Figures of each prompt, with which methods are compared in pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from training.evaluation.measure import PromptSamples
from training.evaluation.rows import evaluation_rows, figures_by_prompt

RNG = np.random.default_rng(0)


def samples(count: int = 6) -> PromptSamples:
    zeros = np.zeros(count)
    return PromptSamples(
        rewards=RNG.normal(size=count),
        gold=RNG.normal(size=count),
        ref_logprob=zeros - 3,
        kl_naive=zeros,
        kl_rb=RNG.random(count),
        tokens=RNG.integers(1, 9, count).astype(float),
        unscored=0,
        truncated=count // 2,
        cut_off=(np.arange(count) < count // 2).astype(float),
    )


def test_their_means_are_the_figures_of_the_table() -> None:
    reference, tuned = [samples() for _ in range(5)], [samples() for _ in range(5)]
    found = figures_by_prompt(reference, {"mine": tuned}, 3)
    assert list(found) == ["reference", "best-of-n", "mine"]
    for row in evaluation_rows(reference, {"mine": tuned}, 3):
        if row.method == "best-of-n" and row.n != 3:
            continue
        figures = found[row.method]
        for name in ("win_rate", "reward", "kl_nats", "gold", "gold_win_rate"):
            assert np.mean(figures[name]) == pytest.approx(getattr(row, name).mean), (
                row.method,
                name,
            )
        if row.tokens is not None:
            assert np.mean(figures["tokens"]) == pytest.approx(row.tokens.mean)
            assert np.mean(figures["truncated"]) == pytest.approx(row.truncated_share)


def test_lengths_of_best_of_n_are_those_of_the_chosen_samples_by_enumeration() -> None:
    one, n = samples(6), 3
    best = [max(subset, key=lambda i: one.rewards[i]) for subset in combinations(range(6), n)]
    assert one.cut_off is not None
    found = figures_by_prompt([one], {}, n)["best-of-n"]
    assert found["tokens"][0] == pytest.approx(np.mean(one.tokens[best]))
    assert found["truncated"][0] == pytest.approx(np.mean(one.cut_off[best]))
    assert 0 < found["truncated"][0] < 1
