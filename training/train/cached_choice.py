"""Chooses a step's samples from the reward cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.objectives.protocol import CachedChoice
from vbon.errors import DataError
from vbon.maths.curves import selection_weights, tilted_weights


def choose_indices(
    choice: CachedChoice, rewards: NDArray[np.float64], count: int, rng: np.random.Generator
) -> list[int]:
    """Indices of ``count`` of a prompt's cached samples.

    ``best``: each is the best of N by itself, where N samples are any subset of the cached ones.
    ``tilted``: each as often as it would be the best of N whose others are drawn anew
    (:func:`tilted_weights`), for which one cached sample is enough. In both, systematic resampling takes
    every sample as often as its probability says, give or take one.
    ``best-worst``: ``count / 2`` pairs, each the best and worst of a subset of its own. Ties go to the
    lower index. ``uniform``: any samples, without replacement.

    Raises:
        DataError: the prompt has too few samples.
    """
    total, whole = len(rewards), int(choice.num_samples)
    needed = {"uniform": count, "tilted": 1}.get(choice.kind, whole)
    if total < needed:
        raise DataError(
            f"a prompt has {total} cached samples where {needed} are needed; sample more, or lower "
            f"{'samples_per_prompt' if choice.kind == 'uniform' else 'N'}"
        )
    if choice.kind == "uniform":
        return [int(i) for i in rng.choice(total, count, replace=False)]
    if choice.kind in ("best", "tilted"):
        weights = (
            tilted_weights(rewards, choice.num_samples)
            if choice.kind == "tilted"
            else selection_weights(rewards, whole)
        )
        cumulative = np.cumsum(weights)
        points = (np.arange(count) + rng.random()) / count * cumulative[-1]
        picks = np.minimum(np.searchsorted(cumulative, points, side="right"), total - 1)
        return [int(i) for i in rng.permutation(picks)]
    pairs: list[int] = []
    for _ in range(count // 2):
        subset = np.sort(rng.choice(total, whole, replace=False))
        pairs += [int(subset[np.argmax(rewards[subset])]), int(subset[np.argmin(rewards[subset])])]
    return pairs
