"""Intervals over seeds, prompts and draws: coverage by simulation, and cases by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vbon.maths.crossed_bootstrap import crossed_bootstrap, resample, seed_weights


def means(values: np.ndarray) -> np.ndarray:
    return values[0]


def covered(seeds: int, seed_sd: float, prompt_sd: float, draw_sd: float) -> float:
    """The share of 300 simulated sweeps whose interval covers the mean of .7."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(300):
        values = 0.7 + rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, prompt_sd, (1, 64))
        values = values + rng.normal(0, draw_sd, (seeds, 64))
        found = crossed_bootstrap(values[None], means)
        hits += found.low <= 0.7 <= found.high
    return hits / 300


@pytest.mark.parametrize(("seeds", "seed_sd"), [(3, 0.0), (3, 0.01), (8, 0.03)])
def test_intervals_cover_seeds_prompts_and_draws_together(seeds: int, seed_sd: float) -> None:
    """A 95% interval covers fewer than 90% of 300 with a probability below 2e-4."""
    assert covered(seeds, seed_sd, 0.1, 0.12) >= 0.9


def test_seeds_that_share_their_prompts_do_not_narrow_the_interval() -> None:
    """Three seeds with equal figures on every prompt tell no more than one."""
    values = np.random.default_rng(0).normal(0.7, 0.1, 64)
    one, three = (crossed_bootstrap(np.tile(values, (1, s, 1)), means) for s in (1, 3))
    assert three.mean == pytest.approx(one.mean)
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.1)


def test_weights_of_seeds_have_the_variance_of_independent_seeds() -> None:
    weights = seed_weights(3, 200_000, np.random.default_rng(0))
    np.testing.assert_allclose(weights.sum(1), 1)
    values = np.array([0.0, 1.0, 2.0])  # variance 1, so that of the mean is 1/3
    assert (weights @ values).var() == pytest.approx(1 / 3, rel=0.02)


def test_the_point_is_the_mean_over_seeds_and_inside() -> None:
    values = np.array([[[0.6, 0.8], [0.8, 1.0]], [[1.0, 1.0], [2.0, 2.0]]])
    found = crossed_bootstrap(values, lambda m: m[0] / m[1])
    assert found.mean == pytest.approx((0.7 / 1 + 0.9 / 2) / 2)
    assert found.low <= found.mean <= found.high
    assert found.count == 4


def test_intervals_cover_sandboxes_too() -> None:
    """Four sandboxes; a 95% interval covers fewer than 49 of 60 with a probability below 1e-4."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(60):
        figures = []
        for _ in range(4):
            values = 0.7 + rng.normal(0, 0.02) + rng.normal(0, 0.01, (2, 1))
            values = values + rng.normal(0, 0.1, (1, 64)) + rng.normal(0, 0.1, (2, 64))
            figures.append(values[None])
        found = resample(figures, means).interval()
        hits += found.low <= 0.7 <= found.high
    assert hits >= 49


def test_one_sandbox_is_the_crossed_bootstrap() -> None:
    values = np.random.default_rng(2).normal(0.7, 0.1, (1, 3, 20))
    assert resample([values], means, "a").interval() == crossed_bootstrap(values, means, stream="a")


def test_differences_are_taken_in_pairs() -> None:
    """.01 apart on every prompt, while the prompts differ by .3: only the pairs tell them apart."""
    values = np.random.default_rng(1).normal(0.7, 0.3, (1, 1, 64))
    one, other = resample([values], means, "a"), resample([values + 0.01], means, "b")
    np.testing.assert_allclose(other.drawn - one.drawn, 0.01)
    assert one.interval().high > other.interval().low
    assert other.p_value_against(one) == pytest.approx(2 / 2001)
    assert one.p_value_against(one) == 1.0


def test_p_values_are_uniform_for_equal_methods() -> None:
    """Two seeds each of two methods without any difference: 10 of 60 below .05 has a chance below 1e-3."""
    rng, low = np.random.default_rng(8), 0
    for _ in range(60):
        common = rng.normal(0.7, 0.1, (1, 1, 64))
        a, b = (resample([common + rng.normal(0, 0.1, (1, 2, 64))], means, m) for m in "ab")
        low += a.p_value_against(b) < 0.05
    assert low < 10
