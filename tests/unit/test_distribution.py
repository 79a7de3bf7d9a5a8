"""Tests of the best-of-N distribution against enumeration of all N-tuples of a tiny vocabulary."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbon.maths import distribution

P = np.array([0.1, 0.25, 0.05, 0.4, 0.2])
R = np.array([0.3, -1.0, 2.5, 0.7, 1.1])


def enumerate_bon(p: np.ndarray, r: np.ndarray, n: int) -> np.ndarray:
    """Probability that each outcome is returned, if the first of tied candidates wins."""
    result = np.zeros(len(p))
    for draw in itertools.product(range(len(p)), repeat=n):
        best = max(draw, key=lambda outcome: r[outcome])  # max returns the first of equals
        result[best] += np.prod(p[list(draw)])
    return result


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "form",
    [distribution.bon_pmf, distribution.bon_pmf_binomial, distribution.bon_pmf_geometric],
)
def test_each_form_matches_enumeration(form, n: int) -> None:
    np.testing.assert_allclose(form(P, R, n), enumerate_bon(P, R, n), atol=1e-12)


@pytest.mark.parametrize("n", [2, 4])
def test_ties_share_their_mass_in_proportion_to_p(n: int) -> None:
    tied = np.array([1.0, 0.0, 1.0, 0.0, 2.0])
    np.testing.assert_allclose(
        distribution.bon_pmf(P, tied, n), enumerate_bon(P, tied, n), atol=1e-12
    )


@settings(deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=8),
    n=st.integers(1, 200),
)
def test_forms_agree_and_sum_to_one(weights: list[float], n: int) -> None:
    p = np.array(weights) / np.sum(weights)
    r = np.arange(len(p), dtype=float)
    exact = distribution.bon_pmf(p, r, n)
    assert math.isclose(exact.sum(), 1.0, abs_tol=1e-9)
    np.testing.assert_allclose(exact, distribution.bon_pmf_geometric(p, r, n), atol=1e-9)


@settings(deadline=None)
@given(weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=8), n=st.integers(2, 64))
def test_kl_never_passes_its_upper_bound(weights: list[float], n: int) -> None:
    p = np.array(weights) / np.sum(weights)
    q = distribution.bon_pmf(p, np.arange(len(p), dtype=float), n)
    kl = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)
    assert kl <= distribution.kl_upper_bound(n) + 1e-9


def test_bound_is_tight_for_many_unlikely_outcomes_and_the_estimate_tends_to_it() -> None:
    p = np.full(20_000, 1 / 20_000)
    q = distribution.bon_pmf(p, np.arange(20_000, dtype=float), 16)
    kl = float(np.sum(q[q > 0] * np.log(q[q > 0] / p[q > 0])))
    assert kl == pytest.approx(1.8350887, abs=2e-3)
    assert distribution.kl_upper_bound(16) == pytest.approx(1.8350887, abs=1e-6)
    assert distribution.kl_estimate(1e-13, 16) == distribution.kl_upper_bound(16)
    assert distribution.kl_estimate(1e-7, 16) == pytest.approx(1.8350887, abs=1e-4)


def test_estimate_of_a_certain_answer_is_zero() -> None:
    assert distribution.kl_estimate(1.0, 16) == 0.0
    with pytest.raises(ValueError, match=r"1\.5"):
        distribution.kl_estimate(1.5, 16)


def test_max_win_rate() -> None:
    assert distribution.max_win_rate(16) == pytest.approx(16 / 17)
