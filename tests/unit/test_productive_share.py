"""The productive share against values by hand, against enumeration and under noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vbon.maths.distribution import bon_pmf
from vbon.maths.intervals import MeanInterval
from vbon.maths.productive_share import (
    equivalent_n,
    equivalent_n_interval,
    productive_share,
    productive_share_interval,
    proven_share,
)


@pytest.mark.parametrize(("win_rate", "n"), [(0.5, 1), (0.8, 4), (16 / 17, 16), (0.4, 2 / 3)])
def test_equivalent_n_by_hand(win_rate: float, n: float) -> None:
    assert equivalent_n(win_rate) == pytest.approx(n)


def test_equivalent_n_stays_finite() -> None:
    assert equivalent_n(1.0) == equivalent_n(1 - 1e-15) == 1e6
    assert equivalent_n_interval(MeanInterval(0.8, 0.5, 1.0, 9)) == MeanInterval(
        pytest.approx(4.0), 1.0, 1e6, 9
    )


def test_share_by_hand() -> None:
    """Best-of-4 wins .8 at log 4 - 3/4 = .636 nats; twice that KL is half productive."""
    assert productive_share(0.8, math.log(4) - 0.75) == pytest.approx(1.0)
    assert productive_share(0.8, 2 * (math.log(4) - 0.75)) == pytest.approx(0.5)


@pytest.mark.parametrize(("win_rate", "kl"), [(0.5, 0.0), (0.51, 0.0), (0.5, 2.0), (0.3, 2.0)])
def test_a_policy_that_never_moved_or_moved_for_nothing_has_share_zero(
    win_rate: float, kl: float
) -> None:
    assert productive_share(win_rate, kl) == 0.0


@pytest.mark.parametrize("n", [2, 4, 9])
def test_best_of_n_of_many_outcomes_spends_all_of_its_kl(n: int) -> None:
    """Enumerated over 4,000 equally likely outcomes, where ties with oneself are rare."""
    p = np.full(4000, 1 / 4000)
    rewards = np.arange(4000.0)
    q = bon_pmf(p, rewards, n)
    win_rate = float(q @ (np.arange(4000) + 0.5) / 4000)
    kl = float((q * np.log(np.maximum(q, 1e-300) / p)).sum())
    assert win_rate == pytest.approx(n / (n + 1), abs=1e-3)
    assert productive_share(win_rate, kl) == pytest.approx(1.0, abs=0.01)


def test_noise_near_the_reference_is_no_share() -> None:
    """40 evaluations of a policy with 1e-4 nats: its share without the rule is often above 1."""
    rng = np.random.default_rng(0)
    bare = []
    for _ in range(40):
        wins, kl = rng.normal(0.5, 0.1, 64), rng.normal(1e-4, 1e-5, 64)
        bare.append(productive_share(float(wins.mean()), float(kl.mean())))
        found = productive_share_interval(wins, kl)
        assert found.low <= found.mean <= found.high
        if found.mean == 0.0:
            assert found.high <= 1.0
    assert max(bare) > 1.0
    assert proven_share(MeanInterval(0.51, 0.49, 0.53, 64), 1e-4) == 0.0
    assert proven_share(MeanInterval(0.8, 0.7, 0.9, 64), 1.0) == productive_share(0.8, 1.0)


def test_the_interval_covers_the_share_of_the_population() -> None:
    """300 evaluations of 64 prompts, win rate .7 and KL .5 on average and correlated.

    95% intervals: fewer than 270 of 300 hits have a probability below 1e-3.
    """
    rng = np.random.default_rng(1)
    truth, hits = productive_share(0.7, 0.5), 0
    for _ in range(300):
        shift = rng.normal(0, 0.1, 64)
        found = productive_share_interval(0.7 + shift, 0.5 + shift + rng.normal(0, 0.05, 64))
        hits += found.low <= truth <= found.high
    assert hits >= 270
