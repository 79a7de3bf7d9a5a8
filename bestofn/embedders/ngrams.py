"""Counts of word n-grams: no model, no download; likeness of wording, not of meaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bestofn.embedders.protocol import Float

LONGEST = 2


class NgramEmbedder:
    """One dimension for each word and each pair of neighbouring words of the texts at hand."""

    name = "ngrams"

    async def embed(self, texts: Sequence[str]) -> Float:
        """Counts, shape ``(texts, n-grams)``; columns differ from call to call."""
        counts = [ngrams(text) for text in texts]
        columns = {gram: i for i, gram in enumerate(sorted(set().union(*counts)))}
        vectors = np.zeros((len(texts), len(columns)))
        for row, counted in enumerate(counts):
            for gram, count in counted.items():
                vectors[row, columns[gram]] = count
        return vectors


def ngrams(text: str) -> Counter[tuple[str, ...]]:
    """Words and pairs of words, lower-cased, with how often they occur."""
    words = text.lower().split()
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )
