"""Captured nats against sums over all draws of toy distributions, with ties and without."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vbon.maths.captured_nats import captured_interval, captured_nats
from vbon.maths.distribution import bon_pmf, kl_upper_bound

P = np.array([0.4, 0.3, 0.2, 0.1])
STRICT = np.array([0.5, -1.0, 2.0, 1.0])
TIED = np.array([1.0, 0.0, 1.0, 0.0])
ALL_TIED = np.zeros(4)
POLICIES = [
    np.array([0.1, 0.2, 0.3, 0.4]),
    np.array([0.4, 0.3, 0.2, 0.1]),
    np.array([0.97, 0.01, 0.01, 0.01]),
]


def expectation(rewards: np.ndarray, q: np.ndarray, num_samples: int, total: int) -> float:
    """The mean of the estimate over every draw of ``total`` samples of P."""
    mean = 0.0
    for draw in itertools.product(range(len(P)), repeat=total):
        picked = list(draw)
        estimate = captured_nats(rewards[picked], np.log(q / P)[picked], num_samples)
        mean += float(P[picked].prod()) * estimate
    return mean


@pytest.mark.parametrize("rewards", [STRICT, TIED, ALL_TIED])
@pytest.mark.parametrize(("num_samples", "total"), [(1, 3), (2, 2), (2, 4), (3, 5), (4, 4)])
def test_estimate_is_unbiased(rewards: np.ndarray, num_samples: int, total: int) -> None:
    best = bon_pmf(P, rewards, num_samples)
    for q in POLICIES:
        exact = float(best @ np.log(q / P))
        assert expectation(rewards, q, num_samples, total) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("rewards", [STRICT, TIED, ALL_TIED])
@pytest.mark.parametrize("num_samples", [2, 4, 16])
def test_only_best_of_n_captures_all_of_its_kl(rewards: np.ndarray, num_samples: int) -> None:
    best = bon_pmf(P, rewards, num_samples)
    kl = float(best @ np.log(best / P))
    assert kl + 1e-12 >= 0
    assert kl <= kl_upper_bound(num_samples)
    for q in [*POLICIES, *np.random.default_rng(0).dirichlet(np.ones(4), 50)]:
        captured = float(best @ np.log(q / P))
        away = float(best @ np.log(best / q))
        assert captured == pytest.approx(kl - away)
        assert captured <= kl + 1e-12


def test_best_of_n_itself_reaches_the_kl_on_average() -> None:
    best = bon_pmf(P, STRICT, 3)
    kl = float(best @ np.log(best / P))
    assert expectation(STRICT, best, 3, 4) == pytest.approx(kl)


def test_samples_that_cannot_be_the_best_need_no_ratio() -> None:
    """Of 4 samples, the worst is never the best of 2; the others are in 1, 2 and 3 of 6 pairs."""
    ratios = np.array([math.nan, 6.0, 12.0, 18.0])
    assert captured_nats(np.arange(4.0), ratios, 2) == pytest.approx((6 + 24 + 54) / 6)


def test_n_beyond_the_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and 2"):
        captured_nats(np.arange(2.0), np.zeros(2), 3)
    with pytest.raises(ValueError, match="no values"):
        captured_interval([])


def test_interval_contains_its_mean_and_narrows_with_prompts() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for prompts in (8, 128):
        found = captured_interval(rng.standard_exponential(prompts) ** 3)
        assert found.low <= found.mean <= found.high
        assert found.count == prompts
        widths.append((found.high - found.low) / found.mean)
    assert widths[1] < widths[0]
    # One prompt in a thousand has all: most resamples lack it, and the mean is still inside.
    rare = captured_interval([0.0] * 999 + [1000.0])
    assert rare.low <= rare.mean <= rare.high
    assert captured_interval([0.7]) == captured_interval([0.7, 0.7]).__class__(0.7, 0.7, 0.7, 1)
