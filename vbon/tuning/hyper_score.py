"""The score of a model in hyper-bo: how fast regret falls while the model leads the search.

    s = [log g_n - log g_(n+k)] / [log(n + k) - log n],   g_n = f* - mu_n + delta

mu_n is the largest posterior mean after n trials and f* an optimistic bound of the maximum, both under one
reference process that is common to all models. If regret falls like C n^-a, then s estimates a, free of n
and C: an early model has no advantage over a late one, and the search among models does not chase a moving
target. When the reference or f* changes, all scores are computed again. Values are standardised, larger is
better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vbon.tuning.gaussian_process import Process

Float = NDArray[np.float64]
Indices = NDArray[np.intp]

OFFSET = 0.01  # delta, in standard deviations of y
OPTIMISM = 2.0  # standard deviations above the mean, of f*
LARGEST_SCORE = 3.0


@dataclass(frozen=True, slots=True)
class Block:
    """The trials that one model proposed, as indices of the data.

    Attributes:
        before: the data that were known when the block began.
    """

    before: Indices
    members: Indices


def block_scores(
    reference: Process, x: Tensor, y: Tensor, blocks: Sequence[Block], candidates: Tensor
) -> Float:
    """The score of each block, in [0, 3].

    Args:
        candidates: the feature rows over which means and bounds are maximised.
    """
    mean, variance = reference.fitted(x, y).moments(candidates)
    bound = float((mean + OPTIMISM * variance.sqrt()).max())
    found = []
    for block in blocks:
        after = np.concatenate([block.before, block.members])
        gaps = [
            max(bound - _best_mean(reference, x[part], y[part], candidates), 0.0) + OFFSET
            for part in (block.before, after)
        ]
        rate = math.log(gaps[0] / gaps[1]) / math.log(len(after) / len(block.before))
        found.append(min(max(rate, 0.0), LARGEST_SCORE))
    return np.array(found)


def _best_mean(reference: Process, x: Tensor, y: Tensor, candidates: Tensor) -> float:
    return float(reference.fitted(x, y).moments(candidates)[0].max())
