"""N-gram similarity: equal to that of all columns at once, and computed off the event loop."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbon.embedders import ngrams
from vbon.embedders.cosine import cosine
from vbon.embedders.ngrams import NgramEmbedder

TEXTS = st.lists(st.lists(st.sampled_from("abBcÉé")).map(" ".join), min_size=1)


def plain(texts: list[str]) -> np.ndarray:
    """Count words and pairs of words in a simple loop; columns in any order."""
    counts = []
    for text in texts:
        words = text.lower().split()
        counts.append(Counter([(word,) for word in words] + list(pairwise(words))))
    grams = sorted(set().union(*counts))
    return np.array([[float(count[gram]) for gram in grams] for count in counts])


@given(TEXTS, st.integers(1, 40))
@settings(deadline=None)
def test_counts_and_cosines_are_those_of_all_words_and_pairs(texts: list[str], block: int) -> None:
    expected, embedder = plain(texts), NgramEmbedder()
    found = embedder.compute(texts)
    assert sorted(found.T.tolist()) == sorted(expected.T.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "_BLOCK_NUMBERS", block)
        similarity = embedder.compare(texts)
    np.testing.assert_allclose(similarity, cosine(expected), rtol=0, atol=1e-12)


def long_texts() -> list[str]:
    """96 texts of 600 words each; no word occurs in two texts."""
    return [" ".join(f"w{i}x{j}" for j in range(600)) for i in range(96)]


async def test_long_texts_are_compared_in_little_memory() -> None:
    """All columns at once would take 84 MiB (115,000 columns of 96 texts), held twice."""
    texts, embedder = long_texts(), NgramEmbedder()
    tracemalloc.start()
    try:
        similarity = await embedder.similarity(texts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(similarity, np.eye(96))
    assert peak < 50 * 2**20


async def test_texts_are_compared_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(texts: list[str]) -> ngrams.NgramCounts:
        begun.set()
        assert release.wait(10)
        return count_ngrams(texts)

    count_ngrams = ngrams.count_ngrams
    monkeypatch.setattr(ngrams, "count_ngrams", slow)
    comparing = asyncio.create_task(NgramEmbedder().similarity(["a film", "a film"]))
    while not begun.is_set():  # noqa: ASYNC110  (it is a thread that sets it)
        await asyncio.sleep(0.001)
    release.set()
    assert np.allclose(await comparing, 1.0)
