"""Tests of intervals of shares, with values by hand and by definition."""

from __future__ import annotations

import math

import pytest

from vbon.maths.statistics import wilson_interval

Z2 = 1.959964**2


def test_where_all_agree_the_interval_has_a_width() -> None:
    """Wilson's interval for p = 1 is [n / (n + z^2), 1]."""
    found = wilson_interval([1.0] * 5)
    assert (found.mean, found.count) == (1.0, 5)
    assert found.low == pytest.approx(5 / (5 + Z2))
    assert found.high == pytest.approx(1.0)
    assert wilson_interval([0.0] * 5).high == pytest.approx(Z2 / (5 + Z2))


def test_its_ends_are_the_shares_a_score_test_just_accepts() -> None:
    """The definition: |p - q| = z sqrt(q (1 - q) / n) at both ends q."""
    found = wilson_interval([1.0] * 7 + [0.0] * 3)
    for end in (found.low, found.high):
        distance = math.sqrt(Z2) * math.sqrt(end * (1 - end) / 10)
        assert abs(found.mean - end) == pytest.approx(distance)


def test_a_tie_is_half_a_win() -> None:
    assert wilson_interval([1.0, 0.5, 0.0, 0.5]).mean == 0.5


def test_of_nothing_there_is_no_share() -> None:
    with pytest.raises(ValueError, match="no values"):
        wilson_interval([])
