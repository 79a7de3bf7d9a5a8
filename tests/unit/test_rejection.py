"""Rejection at a threshold: draws and rewards against an enumeration of all orders."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest

from service.strategies.adaptive_bon import AdaptiveBon
from tests.unit.test_strategies import InstantScorer, ask
from training.cache.sample import log_rejection
from vbon.errors import DataError
from vbon.maths.rejection import calibrated_rejection, rejection_of_prompt

REWARDS = np.array([0.5, -1.0, 2.0, 2.0, 0.0, 1.0])


@pytest.mark.parametrize("threshold", [-9.0, 0.0, 0.75, 2.0, 9.0])
@pytest.mark.parametrize("most", [1, 2, 4, 6])
def test_draws_and_reward_by_all_orders(threshold: float, most: int) -> None:
    draws, rewards = [], []
    for order in itertools.permutations(REWARDS):
        count = next((i for i in range(most) if order[i] >= threshold), most - 1) + 1
        draws.append(count)
        rewards.append(order[count - 1] if order[count - 1] >= threshold else max(order[:count]))
    found = rejection_of_prompt(REWARDS, threshold, most)
    assert found == pytest.approx((np.mean(draws), np.mean(rewards)))


def test_the_threshold_is_the_highest_that_the_draws_allow() -> None:
    prompts = [REWARDS, REWARDS + 1, np.array([3.0])]  # the last has too few samples
    for mean_draws in (1.0, 1.4, 2.5, 4.0):
        found = calibrated_rejection(prompts, mean_draws, 4)
        assert found.draws <= mean_draws
        of_each = [rejection_of_prompt(one, found.threshold, 4) for one in prompts[:2]]
        assert (found.draws, found.reward) == pytest.approx(tuple(np.mean(of_each, axis=0)))
        higher = [r for r in np.concatenate(prompts[:2]) if r > found.threshold]
        if higher:
            beyond = [rejection_of_prompt(one, min(higher), 4)[0] for one in prompts[:2]]
            assert np.mean(beyond) > mean_draws
    with pytest.raises(DataError, match="of 3 prompts, 0 have so many"):
        calibrated_rejection(prompts, 2, 7)


def test_rejection_beats_best_of_n_at_equal_draws() -> None:
    """2,000 normal rewards; each threshold's reward against best-of-n's for as many draws."""
    rewards = np.random.default_rng(0).standard_normal(2000)
    for mean_draws in (2, 4, 8):
        found = calibrated_rejection([rewards], mean_draws, 64)
        assert found.draws == pytest.approx(mean_draws, rel=0.01)
        assert found.reward > found.best_of_n + 0.1


async def test_adaptive_bon_is_rejection_with_these_settings() -> None:
    """The request that the docs name returns the first candidate that reaches it, else the best."""
    rejecting = {"candidate_cost": 0, "min_n": 1, "round_size": 1}
    stopped = 0
    for seed in range(6):
        everything, _ = await ask(AdaptiveBon(min_n=12, candidate_cost=0), n=12, seed=seed)
        rewards = [one.reward for one in everything.candidates]
        for threshold in (0.0, 2.0, 1e6):
            scorer = InstantScorer()
            rule = AdaptiveBon(stop_at_reward=threshold, **rejecting)
            outcome, _ = await ask(rule, n=12, seed=seed, scorer=scorer)
            first = next((i for i, r in enumerate(rewards) if r >= threshold), None)
            assert len(outcome.candidates) == len(scorer.scored)
            assert len(outcome.candidates) == (12 if first is None else first + 1)
            chosen = int(np.argmax(rewards)) if first is None else first
            assert outcome.selected.candidate.index == chosen
            stopped += first is not None and first < 11
    assert stopped


def test_a_cache_tells_its_thresholds(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    with caplog.at_level(logging.INFO):
        log_rejection([rng.standard_normal(16) for _ in range(20)])
        log_rejection([np.zeros(3)])
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2  # for means of 2 and 4: 16 samples are too few for at most 32
    assert "(candidate_cost 0, min_n 1, round_size 1, max_n 8): stop_at_reward" in told[0]
    assert "max_n 16" in told[1]
    assert "best-of-n with as many" in told[0]
