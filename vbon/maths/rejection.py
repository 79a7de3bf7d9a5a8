"""Rejection at a threshold: draw until a reward reaches it, at most n times, and return that candidate.

Of M samples of a prompt, k reach the threshold. In a random order without replacement, the first j are all
below it with probability ``C(M - k, j) / C(M, j)``, so the number of draws is the sum of these over
j = 0..n-1, and each of the k is equally likely the one that ends them. If none of n does, the best of the n
is returned. All of this is exact for the samples at hand, and unbiased for the policy. (Derived here, tested
by enumeration.)

With one prompt, rejection at a threshold gets more reward than best-of-n for the same mean number of draws
(arXiv 2507.12399 shows it for right and wrong answers). One threshold for prompts whose rewards differ in
level also moves draws from easy prompts to hard ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbon.errors import DataError
from vbon.maths.curves import expected_best

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Expected draws and reward of rejection at a threshold, means over prompts.

    Attributes:
        most: n, the most candidates of one answer.
        best_of_n: mean reward of best-of-n of a fixed n with as many draws, interpolated between whole n.
    """

    threshold: float
    most: int
    draws: float
    reward: float
    best_of_n: float


def rejection_of_prompt(rewards: Float, threshold: float, most: int) -> tuple[float, float]:
    """Expected number of draws and expected reward for one prompt, from M samples of it.

    Raises:
        ValueError: ``most`` is outside ``1..M``.
    """
    total = len(rewards)
    if not 1 <= most <= total:
        raise ValueError(f"most must be between 1 and {total}, the number of samples; got {most}")
    reaches = rewards >= threshold
    below = total - int(reaches.sum())
    places = np.arange(most)
    # The probability that the first 1, 2, ..., n draws are all below the threshold
    missing = np.cumprod(np.maximum(below - places, 0) / (total - places))
    draws = 1 + float(missing[:-1].sum())
    none = float(missing[-1])
    reward = (1 - none) * float(rewards[reaches].mean()) if reaches.any() else 0.0
    if none > 0:
        reward += none * expected_best(rewards[~reaches], most)
    return draws, reward


def calibrated_rejection(
    rewards_by_prompt: Sequence[Float], mean_draws: float, most: int
) -> Rejection:
    """The highest threshold that draws at most ``mean_draws`` candidates on average.

    Prompts with fewer samples than ``most`` are left out.

    Raises:
        DataError: no prompt has so many samples, or ``mean_draws`` is below 1.
    """
    prompts = [rewards for rewards in rewards_by_prompt if len(rewards) >= most]
    if not prompts or mean_draws < 1:
        raise DataError(
            f"a threshold for {mean_draws:g} draws, at most {most}, needs at least one draw and prompts with "
            f"{most} samples; of {len(rewards_by_prompt)} prompts, {len(prompts)} have so many"
        )

    def means(threshold: float) -> tuple[float, float]:
        found = [rejection_of_prompt(rewards, threshold, most) for rewards in prompts]
        return float(np.mean([d for d, _ in found])), float(np.mean([r for _, r in found]))

    levels = np.unique(np.concatenate(prompts))
    low, high = (
        0,
        len(levels) - 1,
    )  # draws rise with the threshold; at the lowest level there is one
    while low < high:
        middle = (low + high + 1) // 2
        if means(float(levels[middle]))[0] <= mean_draws:
            low = middle
        else:
            high = middle - 1
    threshold = float(levels[low])
    draws, reward = means(threshold)
    return Rejection(threshold, most, draws, reward, _interpolated_best(prompts, draws))


def _interpolated_best(prompts: Sequence[Float], draws: float) -> float:
    """Mean reward of best-of-n with n drawn at random between the whole numbers around ``draws``."""
    whole = int(draws)
    lower = float(np.mean([expected_best(rewards, whole) for rewards in prompts]))
    if draws == whole:
        return lower
    upper = float(np.mean([expected_best(rewards, whole + 1) for rewards in prompts]))
    return lower + (draws - whole) * (upper - lower)
