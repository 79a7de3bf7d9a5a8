"""Batches of texts for a reward model: the cheapest cut, within the limits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from vbon.rewards.batches import BatchLimits, cut


def cost(batches: list[list[int]], lengths: list[int], limits: BatchLimits) -> float:
    """The cost of batches; infinite if one breaks a limit."""
    total = 0
    for batch in batches:
        own = [lengths[i] for i in batch]
        size = len(own) * max(own)
        if len(own) > limits.texts or (len(own) > 1 and size > limits.tokens):
            return np.inf
        if not limits.pads and len(set(own)) > 1:
            return np.inf
        total += size + limits.call_tokens
    return total


def all_cuts(places: list[int]) -> list[list[list[int]]]:
    """Every way to cut a list into parts."""
    last = len(places)
    return [
        [places[start:end] for start, end in zip((0, *inner), (*inner, last), strict=True)]
        for parts in range(last)
        for inner in combinations(range(1, last), parts)
    ]


@pytest.mark.parametrize("pads", [True, False])
def test_no_other_cut_is_cheaper(pads: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        lengths = [int(n) for n in rng.integers(1, 9, size=rng.integers(1, 8))]
        texts, tokens, call = (int(n) for n in rng.integers((1, 1, 0), (5, 30, 12)))
        limits = BatchLimits(texts, tokens, call, pads)
        batches = cut(lengths, limits)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        ordered = sorted(range(len(lengths)), key=lambda i: lengths[i])
        cheapest = min(cost(one, lengths, limits) for one in all_cuts(ordered))
        assert cost(batches, lengths, limits) == cheapest < np.inf


def test_a_dear_call_makes_the_fewest_batches_and_a_cheap_one_no_padding() -> None:
    lengths = [9, 2, 2, 9, 5, 2]
    assert cut(lengths, BatchLimits(3, 10**9, 10**9)) == [[1, 2, 5], [4, 0, 3]]
    assert cut(lengths, BatchLimits(6, 10**9, 0)) == [[1, 2, 5], [4], [0, 3]]


def test_a_text_beyond_the_limit_of_tokens_is_a_batch_by_itself() -> None:
    assert cut([100, 4, 90, 4], BatchLimits(8, 10, 50)) == [[1, 3], [2], [0]]
    assert cut([], BatchLimits(8, 10, 50)) == []
