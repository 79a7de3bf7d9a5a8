"""Word n-gram counts as embeddings: no model needed, but similar wording counts, not similar meaning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbon.embedders.cosine import bounded
from vbon.embedders.protocol import Float
from vbon.embedders.threaded import ThreadedEmbedder

# The most numbers in one dense block of columns: 8 MiB.
_BLOCK_NUMBERS = 2**20

Int = NDArray[np.int64]


class NgramEmbedder(ThreadedEmbedder):
    """Embeds texts with one dimension per word and per pair of neighbouring words they contain."""

    def __init__(self) -> None:
        super().__init__("ngrams")

    def load(self) -> None:
        """Do nothing: n-grams need no model."""

    def compute(self, texts: list[str]) -> Float:
        """The counts, shape ``(texts, n-grams)``; the columns differ from call to call."""
        return count_ngrams(texts).dense(0)

    def compare(self, texts: list[str]) -> Float:
        """The cosines of all pairs, computed in blocks of columns to save memory.

        All columns at once would take gigabytes for long texts. Counts are whole numbers, so the sums are
        exact and do not depend on the block size.
        """
        counts = count_ngrams(texts)
        squares = np.bincount(counts.rows, np.square(counts.values), minlength=len(texts))
        counts = counts.shared_only()
        products = np.zeros((len(texts), len(texts)))
        width = max(1, _BLOCK_NUMBERS // max(1, len(texts)))
        for start in range(0, counts.columns, width):
            block = counts.dense(start, width)
            products += block @ block.T
        norms = np.sqrt(squares)
        norms[norms == 0] = 1.0  # a text without words has similarity 0 with all others
        return bounded(products / norms[:, None] / norms[None, :])


@dataclass(frozen=True, slots=True)
class NgramCounts:
    """A sparse matrix of the counts of each n-gram in each text, with its entries sorted by column.

    Attributes:
        texts: the number of rows.
        columns: the number of n-grams.
        rows: the text of each entry.
        cols: the n-gram of each entry, in ascending order.
        values: the count of each entry; never 0.
    """

    texts: int
    columns: int
    rows: Int
    cols: Int
    values: Int

    def shared_only(self) -> NgramCounts:
        """The n-grams that occur in at least two texts; only these affect products of two texts.

        Most n-grams occur in one text only.
        """
        kept = (np.bincount(self.cols, minlength=self.columns) > 1)[self.cols]
        present, cols = np.unique(self.cols[kept], return_inverse=True)
        return NgramCounts(self.texts, len(present), self.rows[kept], cols, self.values[kept])

    def dense(self, start: int, width: int | None = None) -> Float:
        """A block of columns as a dense matrix, shape ``(texts, width)``; by default all from ``start``."""
        end = self.columns if width is None else min(self.columns, start + width)
        first, last = np.searchsorted(self.cols, (start, end))
        vectors = np.zeros((self.texts, end - start))
        entries = slice(first, last)
        vectors[self.rows[entries], self.cols[entries] - start] = self.values[entries]
        return vectors


def count_ngrams(texts: list[str]) -> NgramCounts:
    """Count the lower-cased words, and pairs of neighbouring words, of at least one text."""
    number: dict[str, int] = {}
    words = [
        np.array([number.setdefault(word, len(number)) for word in text.lower().split()], np.int64)
        for text in texts
    ]
    grams, values = [], []
    for ids in words:
        # Words keep their own numbers; the numbers of pairs follow after those of all words.
        pairs = len(number) + ids[:-1] * len(number) + ids[1:]
        found, count = np.unique(np.concatenate([ids, pairs]), return_counts=True)
        grams.append(found)
        values.append(count)
    rows = np.repeat(np.arange(len(texts)), [len(found) for found in grams])
    present, cols = np.unique(np.concatenate(grams), return_inverse=True)
    order = np.argsort(cols, kind="stable")
    return NgramCounts(
        len(texts), len(present), rows[order], cols[order], np.concatenate(values)[order]
    )
