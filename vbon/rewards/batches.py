"""Cuts texts into the batches of a model's calls, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The largest batch, and what a call costs beside its tokens.

    Attributes:
        texts: texts of a batch, at most.
        tokens: tokens of a batch with its padding, at most; a longer text is a batch by itself.
        call_tokens: the time of a call without texts, in tokens; a batch is cut where this spares more.
        pads: whether texts of different length may be in one batch.
    """

    texts: int
    tokens: int
    call_tokens: int
    pads: bool = True


def cut(lengths: Sequence[int], limits: BatchLimits) -> list[list[int]]:
    """The cheapest batches of texts with these lengths in tokens, as indices; shorter texts come first.

    A batch costs the tokens of its longest text for each of its texts, and ``call_tokens``. In the order of
    the lengths, the cheapest batches of the first texts end with one batch after the cheapest of fewer texts.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, starts = [0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        best, best_start = costs[end - 1] + longest, end - 1
        for start in range(end - 2, max(-1, end - 1 - limits.texts), -1):
            texts = end - start
            if texts * longest > limits.tokens:
                break
            if not limits.pads and lengths[order[start]] != longest:
                break
            cost = costs[start] + texts * longest
            if cost <= best:
                best, best_start = cost, start
        costs.append(best + limits.call_tokens)
        starts.append(best_start)
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[starts[end] : end])
        end = starts[end]
    return batches[::-1]
