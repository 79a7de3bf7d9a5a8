"""Counts of word n-grams: no model, no download; likeness of wording, not of meaning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbon.embedders.cosine import bounded
from vbon.embedders.protocol import Float
from vbon.embedders.threaded import ThreadedEmbedder

# Numbers in a block of columns that is filled at once: 8 MiB.
_BLOCK = 2**20

Int = NDArray[np.int64]


class NgramEmbedder(ThreadedEmbedder):
    """One dimension for each word and each pair of neighbouring words of the texts at hand."""

    def __init__(self) -> None:
        super().__init__("ngrams")

    def load(self) -> None:
        """There is nothing to load."""

    def compute(self, texts: list[str]) -> Float:
        """Counts, shape ``(texts, n-grams)``; columns differ from call to call."""
        return counted(texts).block(0)

    def compare(self, texts: list[str]) -> Float:
        """Cosines by blocks of columns: all of them would take gigabytes for long texts.

        Counts are whole numbers, so the sums are exact, and the same in whatever blocks.
        """
        counts = counted(texts)
        squares = np.bincount(counts.rows, np.square(counts.values), minlength=len(texts))
        counts = counts.shared()
        products = np.zeros((len(texts), len(texts)))
        width = max(1, _BLOCK // max(1, len(texts)))
        for start in range(0, counts.columns, width):
            block = counts.block(start, width)
            products += block @ block.T
        norms = np.sqrt(squares)
        norms[norms == 0] = 1.0  # a text without a word is like nothing
        return bounded(products / norms[:, None] / norms[None, :])


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each n-gram occurs in each text, where it does; by column.

    Attributes:
        rows: of each entry, its text.
        cols: its n-gram, in ascending order.
        values: how often.
    """

    texts: int
    columns: int
    rows: Int
    cols: Int
    values: Int

    def shared(self) -> Counts:
        """Without what only one text has, most of it by far, which no product of two texts needs."""
        kept = (np.bincount(self.cols, minlength=self.columns) > 1)[self.cols]
        present, cols = np.unique(self.cols[kept], return_inverse=True)
        return Counts(self.texts, len(present), self.rows[kept], cols, self.values[kept])

    def block(self, start: int, width: int | None = None) -> Float:
        """Some of the columns in full, shape ``(texts, columns)``; all from ``start`` by default."""
        end = self.columns if width is None else min(self.columns, start + width)
        first, last = np.searchsorted(self.cols, (start, end))
        vectors = np.zeros((self.texts, end - start))
        entries = slice(first, last)
        vectors[self.rows[entries], self.cols[entries] - start] = self.values[entries]
        return vectors


def counted(texts: list[str]) -> Counts:
    """Words and pairs of words, lower-cased, of at least one text."""
    number: dict[str, int] = {}
    words = [
        np.array([number.setdefault(word, len(number)) for word in text.lower().split()], np.int64)
        for text in texts
    ]
    grams, values = [], []
    for ids in words:
        # A word's number, and behind all of those, one for each pair.
        pairs = len(number) + ids[:-1] * len(number) + ids[1:]
        found, count = np.unique(np.concatenate([ids, pairs]), return_counts=True)
        grams.append(found)
        values.append(count)
    rows = np.repeat(np.arange(len(texts)), [len(found) for found in grams])
    present, cols = np.unique(np.concatenate(grams), return_inverse=True)
    order = np.argsort(cols, kind="stable")
    return Counts(len(texts), len(present), rows[order], cols[order], np.concatenate(values)[order])
