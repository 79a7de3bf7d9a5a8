"""Intervals over training seeds, prompts and evaluation draws together.

Every training seed is evaluated on the same prompts, so seeds and prompts are resampled separately and
crossed. Each pair of a seed and a prompt has samples of its own, so this also resamples the draws.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vbon.maths.intervals import MeanInterval

Float = NDArray[np.float64]
RESAMPLES = 2000


def prompt_weights(prompts: int, resamples: int, rng: np.random.Generator) -> Float:
    """The weight of each prompt in each resample, shape ``(R, P)``; rows sum to 1."""
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) / prompts


def seed_weights(seeds: int, resamples: int, rng: np.random.Generator) -> Float:
    """The weight of each seed in each resample, shape ``(R, S)``; rows sum to 1.

    Plain resampling of S values understates the variance of their mean by the factor (S-1)/S, a third for
    three seeds. So the deviations from 1/S are widened; single weights may be negative.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    plain = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    return 1 / seeds + (plain - 1 / seeds) * np.sqrt(seeds / (seeds - 1))


def crossed_bootstrap(
    figures: ArrayLike, statistic: Callable[[Float], Float], *, seed: int = 0
) -> MeanInterval:
    """The mean over seeds of a statistic of means over prompts, with its 95% interval.

    With one seed the interval does not cover the differences between seeds. With few seeds that differ much,
    it covers less than 95%: three values say little about their spread.

    Args:
        figures: F figures of each seed and prompt, shape ``(F, S, P)``.
        statistic: takes the means, shape ``(F, ...)``, and returns one value for each, shape ``(...)``.
    """
    values_FSP = np.asarray(figures, dtype=np.float64)
    _, seeds, prompts = values_FSP.shape
    rng = np.random.default_rng(seed)
    weights_RS = seed_weights(seeds, RESAMPLES, rng)
    means_FRS = np.einsum("fsp,rp->frs", values_FSP, prompt_weights(prompts, RESAMPLES, rng))
    drawn = (statistic(means_FRS) * weights_RS).sum(1)
    point = float(statistic(values_FSP.mean(2)).mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    return MeanInterval(point, min(point, float(low)), max(point, float(high)), seeds * prompts)
