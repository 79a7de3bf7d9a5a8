"""The cached samples that a step chooses, compared with an enumeration of subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from training.cache.reward_cache import RewardCache
from training.objectives.protocol import CachedChoice
from training.train.cached_choice import choose_indices
from vbon.errors import DataError
from vbon.maths.curves import selection_weights, tilted_weights

REWARDS = np.array([0.5, -1.0, 2.0, 0.0, 1.5, 1.0])


def frequencies(choice: CachedChoice, rounds: int, count: int) -> np.ndarray:
    found = np.zeros(len(REWARDS))
    for seed in range(rounds):
        for index in choose_indices(choice, REWARDS, count, np.random.default_rng(seed)):
            found[index] += 1
    return found / found.sum()


def test_best_comes_as_often_as_the_best_of_n_is_it() -> None:
    """6,000 draws; systematic resampling only lowers the spread of a binomial, so 5 sigma is < 1e-6."""
    expected = np.zeros(6)
    for subset in itertools.combinations(range(6), 3):
        expected[max(subset, key=lambda i: REWARDS[i])] += 1 / 20
    np.testing.assert_allclose(selection_weights(REWARDS, 3), expected)
    found = frequencies(CachedChoice("best", 3), 1500, 4)
    sigma = np.sqrt(expected * (1 - expected) / 6000)
    assert (np.abs(found - expected) <= 5 * sigma + 1e-12).all()


@pytest.mark.parametrize("n", [3, 16])
def test_tilted_comes_as_often_as_its_weights_say(n: int) -> None:
    """Also with a larger N than there are samples; 6,000 draws, 5 sigma as above."""
    expected = tilted_weights(REWARDS, n)
    found = frequencies(CachedChoice("tilted", n), 1500, 4)
    sigma = np.sqrt(expected * (1 - expected) / 6000)
    assert (np.abs(found - expected) <= 5 * sigma + 1e-12).all()


def test_as_many_samples_as_n_have_one_best_and_several_tilted() -> None:
    """With M = N = 6 the weights of the three largest are 252, 126 and 56 of 462, so 12 draws have them."""
    picks = choose_indices(CachedChoice("best", 6), REWARDS, 12, np.random.default_rng(0))
    assert set(picks) == {2}
    picks = choose_indices(CachedChoice("tilted", 6), REWARDS, 12, np.random.default_rng(0))
    assert set(picks) >= {2, 4, 5}


@pytest.mark.parametrize(("m", "most"), [(4, 1.0), (16, 0.1), (64, 0.02)])
def test_log_cdf_of_tilted_samples_is_hardly_biased(m: int, most: float) -> None:
    """Given its rank k among m, log F of a cached sample has the mean H_(k-1) - H_m, as F is Beta(k, m-k+1).

    Counting a sample among the m but not as below itself is right here: leaving it out of both, log(k/m),
    raises the target of every sample by (N-1) log((m+1)/m), .9 nats at m = N = 16.
    """
    rewards, n = np.arange(m, dtype=float), 16
    cache = RewardCache.from_rewards({(1,): list(rewards)})
    mean = np.array([-sum(1 / j for j in range(k, m + 1)) for k in range(1, m + 1)])
    error = (n - 1) * tilted_weights(rewards, n) @ (cache.log_cdf(0, rewards) - mean)
    assert 0 < error < most


def test_best_is_spread_evenly_over_a_choice() -> None:
    """Each sample comes floor or ceil of count times its probability: that is systematic resampling."""
    weights = selection_weights(REWARDS, 2)
    picks = choose_indices(CachedChoice("best", 2), REWARDS, 10, np.random.default_rng(3))
    counts = np.bincount(picks, minlength=6)
    assert (np.abs(counts - 10 * weights) < 1).all()


def test_best_and_worst_are_of_one_subset() -> None:
    joint = np.zeros((6, 6))
    for subset in itertools.combinations(range(6), 3):
        best = max(subset, key=lambda i: REWARDS[i])
        worst = min(subset, key=lambda i: REWARDS[i])
        joint[best, worst] += 1 / 20
    found = np.zeros((6, 6))
    for seed in range(3000):
        picks = choose_indices(
            CachedChoice("best-worst", 3), REWARDS, 4, np.random.default_rng(seed)
        )
        for best, worst in zip(picks[::2], picks[1::2], strict=True):
            found[best, worst] += 1 / 6000
    # 5.5 sigma over 36 cells: false alarm below 2e-6
    assert (np.abs(found - joint) <= 5.5 * np.sqrt(joint * (1 - joint) / 6000) + 1e-12).all()


def test_uniform_takes_no_sample_twice() -> None:
    picks = choose_indices(CachedChoice("uniform"), REWARDS, 6, np.random.default_rng(0))
    assert sorted(picks) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (CachedChoice("best", 7), "6 cached samples where 7 are needed.*lower N"),
        (CachedChoice("best-worst", 7), "lower N"),
        (CachedChoice("uniform"), "lower samples_per_prompt"),
    ],
)
def test_too_few_samples_are_refused(choice: CachedChoice, words: str) -> None:
    with pytest.raises(DataError, match=words):
        choose_indices(
            choice, REWARDS, 8 if choice.kind == "uniform" else 2, np.random.default_rng(0)
        )
