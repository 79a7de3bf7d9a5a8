"""Tests of the unbiased curves against averages over all subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbon.maths import curves

REWARDS = np.array([0.5, -1.0, 2.0, 0.5, 1.5, 3.0, -0.2])
GOLD = np.array([1.0, 0.0, 5.0, 2.0, -1.0, 0.5, 0.3])


def best_of(subset: tuple[int, ...], rewards: np.ndarray) -> int:
    return max(subset, key=lambda i: (rewards[i], -i))


@pytest.mark.parametrize("n", range(1, 8))
def test_expected_best_is_the_mean_over_all_subsets(n: int) -> None:
    subsets = list(itertools.combinations(range(len(REWARDS)), n))
    picks = [best_of(subset, REWARDS) for subset in subsets]
    assert curves.expected_best(REWARDS, n) == pytest.approx(np.mean(REWARDS[picks]))
    assert curves.expected_best(REWARDS, n, GOLD) == pytest.approx(np.mean(GOLD[picks]))
    assert curves.selection_weights(REWARDS, n).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("m", "n"), [(1, 4), (2, 4), (3, 3), (4, 2), (5, 1)])
def test_tilted_weight_is_the_chance_to_beat_all_further_samples(m: int, n: int) -> None:
    """All orders of m samples and n - 1 further ones are equally likely: count those of each rank."""
    beats = np.zeros(m)
    orders = list(itertools.permutations(range(m + n - 1)))
    for order in orders:
        ours, further = np.sort(order[:m]), order[m:]
        beats += [all(one > other for other in further) for one in ours]
    rewards = np.arange(m, dtype=float)[::-1]  # the first is the best
    found = curves.tilted_weights(rewards, n)
    np.testing.assert_allclose(found, n / m * beats[::-1] / len(orders))
    assert found.sum() == pytest.approx(1.0)


def test_tilted_weights_of_many_samples_are_those_of_the_best_of_n() -> None:
    """They differ by O(1/M); equal rewards stand in the same order."""
    rewards = np.random.default_rng(0).permutation(np.arange(4000) // 2).astype(float)
    tilted, best = curves.tilted_weights(rewards, 4), curves.selection_weights(rewards, 4)
    assert np.abs(tilted - best).sum() < 0.01
    assert (np.argsort(tilted[best > 0]) == np.argsort(best[best > 0])).all()


@pytest.mark.parametrize("n", [1.5, 4.0, 4.5, 16.3])
def test_tilted_weights_are_the_mean_power_of_f_for_any_n(n: float) -> None:
    """F of the k-th smallest of m is Beta(k, m - k + 1); the mean of F^(n-1), times n/m, by integration."""
    m, grid = 5, (np.arange(200_000) + 0.5) / 200_000
    expected = [
        n
        / m
        * np.mean(math.comb(m, k) * k * grid ** (k - 1) * (1 - grid) ** (m - k) * grid ** (n - 1))
        for k in range(1, m + 1)
    ]
    found = curves.tilted_weights(np.arange(m, dtype=float), n)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("rewards", "n"), [(REWARDS, 0), (np.array([]), 2)])
def test_tilted_weights_need_a_sample(rewards: np.ndarray, n: int) -> None:
    with pytest.raises(ValueError, match="n must be at least 1, with at least one sample"):
        curves.tilted_weights(rewards, n)


@pytest.mark.parametrize("rewards", [REWARDS, np.array([1.0, 1.0, 1.0, 0.0, 2.0, 2.0, 0.0])])
@pytest.mark.parametrize("n", range(1, 7))
def test_win_rate_is_the_mean_over_all_subsets_and_opponents(n: int, rewards: np.ndarray) -> None:
    outcomes = []
    for subset in itertools.combinations(range(len(rewards)), n):
        best = rewards[list(subset)].max()
        for opponent in set(range(len(rewards))) - set(subset):
            outcomes.append(0.5 * (1 + np.sign(best - rewards[opponent])))
    assert curves.win_rate_of_best(rewards, n) == pytest.approx(np.mean(outcomes))


@pytest.mark.parametrize("gold", [GOLD, REWARDS, np.array([1.0, 1.0, 0.0, 2.0, 1.0, 0.0, 2.0])])
@pytest.mark.parametrize("n", range(1, 7))
def test_gold_win_rate_is_the_mean_over_all_subsets_and_opponents(n: int, gold: np.ndarray) -> None:
    outcomes = []
    for subset in itertools.combinations(range(len(REWARDS)), n):
        best = gold[best_of(subset, REWARDS)]
        for opponent in set(range(len(REWARDS))) - set(subset):
            outcomes.append(0.5 * (1 + np.sign(best - gold[opponent])))
    assert curves.win_rate_of_best(REWARDS, n, gold) == pytest.approx(np.mean(outcomes))


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=3, max_size=40, unique=True), st.data())
def test_without_ties_the_win_rate_is_n_over_n_plus_one(values: list[float], data) -> None:
    n = data.draw(st.integers(1, len(values) - 1))
    assert curves.win_rate_of_best(np.array(values), n) == pytest.approx(n / (n + 1))


def test_all_ties_win_half() -> None:
    assert curves.win_rate_of_best(np.ones(9), 4) == pytest.approx(0.5)


def test_large_m_does_not_overflow() -> None:
    rewards = np.arange(5000, dtype=float)
    assert curves.selection_weights(rewards, 2048).sum() == pytest.approx(1.0)
    assert curves.tilted_weights(rewards, 2048).sum() == pytest.approx(1.0)
    assert curves.win_rate_of_best(rewards, 2048) == pytest.approx(2048 / 2049)


def test_pairwise_win_rate_counts_ties_half() -> None:
    ours, theirs = np.array([1.0, 2.0]), np.array([1.0, 0.0, 3.0])
    expected = np.mean([[0.5, 1, 0], [1, 1, 0]])
    assert curves.pairwise_win_rate(ours, theirs) == pytest.approx(expected)


@pytest.mark.parametrize("n", [0, 8])
def test_n_outside_the_batch_is_refused_with_the_range(n: int) -> None:
    with pytest.raises(ValueError, match=r"between 1 and 7"):
        curves.expected_best(REWARDS, n)
    with pytest.raises(ValueError, match=r"between 1 and 6"):
        curves.win_rate_of_best(REWARDS, n)
