"""The targets that `vbon tune` takes."""

from __future__ import annotations

import pytest

from vbon.errors import InvalidInputError
from vbon.measured.target import Target, parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reward >= best-of-8", Target("reward", best_of=8)),
        ("gold>=1.5", Target("gold", 1.5)),
        (" win-rate >= .8 ", Target("win-rate", 0.8)),
        ("win_rate >= 0.5", Target("win-rate", 0.5)),
        ("reward >= -2e-1", Target("reward", -0.2)),
    ],
)
def test_a_target_is_read_and_reads_back_the_same(text: str, expected: Target) -> None:
    assert parse_target(text) == expected
    assert parse_target(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reward > 3", "must have the form"),
        ("reward", "must have the form"),
        ("speed >= 3", "'speed' is not one of reward, gold, win-rate"),
        ("reward >= best", "neither a number nor best-of-K"),
        ("reward >= nan", "finite"),
        ("gold >= inf", "finite"),
        ("reward >= best-of-0", "between 1 and 4096"),
        ("win-rate >= 1", "below 1"),
        ("win-rate >= -0.1", "at least 0"),
    ],
)
def test_other_targets_are_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        parse_target(text)
