"""The prior of ``adaptive-bon``: estimates by hand, and from rewards whose distribution is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.strategies.adaptive_bon import AdaptiveBon
from vbon.errors import DataError
from vbon.maths.reward_prior import RewardPrior, estimate_reward_prior


def test_variances_within_and_between_by_hand() -> None:
    """Means 1 and 5, variances 2 and 2: within 2, between 8 - 2 / 2 = 7; the spreads are equal."""
    found = estimate_reward_prior([np.array([0.0, 2.0]), np.array([4.0, 6.0]), np.array([9.0])])
    assert found.mean == 3.0
    assert found.mean_candidates == pytest.approx(2 / 7)
    assert found.sd_candidates == 100.0
    assert found.sd == pytest.approx(math.sqrt(2 * 98 / 100))


def test_spreads_that_differ_by_hand() -> None:
    """Variances 1 and 3 of many rewards: squared coefficient of variation 2 / 4 = 2 / (f - 4), so f = 8."""
    rng = np.random.default_rng(0)
    shape = rng.standard_normal(100_000)
    shape = (shape - shape.mean()) / shape.std(ddof=1)
    found = estimate_reward_prior([shape, math.sqrt(3) * shape + 1])
    assert found.sd_candidates == pytest.approx(8, rel=1e-3)
    assert found.sd == pytest.approx(math.sqrt(2 * 6 / 8), rel=1e-3)


@pytest.mark.parametrize(("between", "freedom"), [(0.5, 10.0), (2.0, 30.0)])
def test_a_known_distribution_is_found(between: float, freedom: float) -> None:
    """Within-prompt variances are ``freedom / chi-squared``, means ``between`` times as wide; 3,000 prompts.

    Over 60 seeds the estimates of ``sd_candidates`` had a standard deviation of 5%, those of
    ``mean_candidates`` 3% and those of ``sd`` .7%; each may be wrong by five of them.
    """
    rng = np.random.default_rng(7)
    deviations = np.sqrt(freedom / rng.chisquare(freedom, 3000))
    means = 1.5 + between * rng.standard_normal(3000)
    rewards = means[:, None] + deviations[:, None] * rng.standard_normal((3000, 64))
    found = estimate_reward_prior(list(rewards))
    assert found.mean == pytest.approx(1.5, abs=5 * between / math.sqrt(3000) + 0.02)
    assert found.sd == pytest.approx(1, rel=0.035)
    within = freedom / (freedom - 2)
    assert found.mean_candidates == pytest.approx(within / between**2, rel=0.15)
    assert found.sd_candidates == pytest.approx(freedom, rel=0.27)


def test_prompts_without_differences_give_settings_that_are_allowed() -> None:
    for rewards in (np.zeros((4, 3)), np.arange(12.0).reshape(4, 3) % 3, np.eye(4)):
        settings = estimate_reward_prior(list(rewards)).settings()
        assert AdaptiveBon.model_validate(settings).prior_sd == settings["prior_sd"]


def test_too_few_rewards_are_refused() -> None:
    with pytest.raises(DataError, match="two prompts with two rewards each, and there are 1"):
        estimate_reward_prior([np.array([1.0, 2.0]), np.array([1.0])])


def test_the_settings_are_those_of_the_mode() -> None:
    settings = RewardPrior(1.0, 2.0, 3.0, 4.0).settings()
    prior = AdaptiveBon.model_validate(settings).prior
    assert (prior.mean, prior.sd, prior.mean_candidates, prior.sd_candidates) == (1, 2, 3, 4)
