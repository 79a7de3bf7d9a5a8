"""A leak is told from noise."""

from __future__ import annotations

import numpy as np

from tests.soak.growth import growth

AT_S = np.arange(0.0, 3600.0, 6.0)
NOISE = np.random.default_rng(0).normal(0, 5, len(AT_S))


def test_a_leak_is_found() -> None:
    # 100 MB an hour on 500: by the end of the warm-up 80 are to come.
    found = growth(AT_S, 500 + 100 * AT_S / 3600 + NOISE)
    assert found is not None
    assert found.verdict == "grows"
    assert found.low < 80 < found.high


def test_noise_and_a_warm_up_are_flat() -> None:
    found = growth(AT_S, 500 + NOISE + 200 * np.minimum(1, AT_S / 600))
    assert found is not None
    assert found.verdict == "flat"


def test_a_constant_is_flat() -> None:
    found = growth(AT_S, np.full(len(AT_S), 73.0))
    assert found is not None
    assert (found.verdict, found.total, found.high) == ("flat", 0.0, 0.0)


def test_what_is_too_noisy_is_undecided() -> None:
    found = growth(AT_S[:20], 500 + 40 * NOISE[:20])
    assert found is not None
    assert found.verdict == "undecided"


def test_no_line_through_too_little() -> None:
    assert growth([0.0, 1.0], [1.0, 2.0]) is None
    assert growth([], []) is None
