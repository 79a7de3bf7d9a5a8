"""Picks a step's samples from the cache, as an objective's :class:`CachedDraw` says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.objectives.protocol import CachedDraw
from vbon.errors import DataError
from vbon.maths.curves import selection_weights


def draw_indices(
    draw: CachedDraw, rewards: NDArray[np.float64], count: int, rng: np.random.Generator
) -> list[int]:
    """``count`` indices into a prompt's cached samples.

    ``best``: each is the best of N by itself, over all subsets of size N, drawn by systematic
    resampling: every sample comes as often as its probability says, give or take one.
    ``best-worst``: ``count / 2`` pairs, each of its own subset. Ties go to the lower index.

    Raises:
        DataError: if a prompt has too few samples.
    """
    total = len(rewards)
    needed = count if draw.kind == "uniform" else draw.num_samples
    if total < needed:
        raise DataError(
            f"a prompt has {total} cached samples where {needed} are needed; sample more, or lower "
            f"{'samples_per_prompt' if draw.kind == 'uniform' else 'N'}"
        )
    if draw.kind == "uniform":
        return [int(i) for i in rng.choice(total, count, replace=False)]
    if draw.kind == "best":
        cumulative = np.cumsum(selection_weights(rewards, draw.num_samples))
        points = (np.arange(count) + rng.random()) / count * cumulative[-1]
        picks = np.minimum(np.searchsorted(cumulative, points, side="right"), total - 1)
        return [int(i) for i in rng.permutation(picks)]
    pairs: list[int] = []
    for _ in range(count // 2):
        subset = np.sort(rng.choice(total, draw.num_samples, replace=False))
        pairs += [int(subset[np.argmax(rewards[subset])]), int(subset[np.argmin(rewards[subset])])]
    return pairs
