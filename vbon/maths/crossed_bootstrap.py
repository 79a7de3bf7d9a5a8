"""Intervals over sandboxes, training seeds, prompts and evaluation draws together.

Every training seed is evaluated on the same prompts, so seeds and prompts are resampled separately and
crossed. Each pair of a seed and a prompt has samples of its own, so this also resamples the draws. A sandbox
has models, seeds and prompts of its own, so the sandboxes are resampled first and all else within them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vbon.maths.intervals import MeanInterval

Float = NDArray[np.float64]
Statistic = Callable[[Float], Float]
RESAMPLES = 2000
# Parts of the seeds of random streams, so that no two kinds of weights share one.
_PROMPTS, _SEEDS, _SANDBOXES = 0, 1, 2


def prompt_weights(prompts: int, resamples: int, rng: np.random.Generator) -> Float:
    """The weight of each prompt in each resample, shape ``(R, P)``; rows sum to 1."""
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) / prompts


@lru_cache(
    maxsize=4
)  # drawing them takes longer than all else, and a sweep asks again for each figure
def _weights_of_sandbox(prompts: int, sandbox: int) -> Float:
    """The prompts' weights of one sandbox, which are the same in every call, shape ``(P, R)``; read-only."""
    rng = np.random.default_rng([_PROMPTS, sandbox, prompts])
    weights_PR = np.ascontiguousarray(prompt_weights(prompts, RESAMPLES, rng).T)
    weights_PR.setflags(write=False)
    return weights_PR


def seed_weights(seeds: int, resamples: int, rng: np.random.Generator) -> Float:
    """The weight of each seed in each resample, shape ``(R, S)``; rows sum to 1.

    Plain resampling of S values understates the variance of their mean by the factor (S-1)/S, a third for
    three seeds. So the deviations from 1/S are widened; single weights may be negative.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    plain = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    return 1 / seeds + (plain - 1 / seeds) * np.sqrt(seeds / (seeds - 1))


@dataclass(frozen=True, slots=True)
class Resampled:
    """A statistic with its resamples.

    Attributes:
        point: the mean over sandboxes of the mean over seeds.
        drawn: the same in each resample, shape ``(R,)``.
        count: number of pairs of a seed and a prompt.
    """

    point: float
    drawn: Float
    count: int

    def interval(self) -> MeanInterval:
        """The point with its 95% percentile interval, widened to contain the point."""
        low, high = (float(end) for end in np.quantile(self.drawn, [0.025, 0.975]))
        return MeanInterval(self.point, min(self.point, low), max(self.point, high), self.count)

    def p_value_against(self, other: Resampled) -> float:
        """Two-sided bootstrap p-value of the difference from another statistic, at least 1/(R+1).

        Both must come from :func:`resample` with the same sandboxes and prompts, which makes them a pair.
        """
        difference = self.drawn - other.drawn
        fewer = min((difference <= 0).sum(), (difference >= 0).sum())
        return min(1.0, 2 * (float(fewer) + 1) / (len(difference) + 1))


def resample(figures: Sequence[ArrayLike], statistic: Statistic, stream: str = "") -> Resampled:
    """A statistic of means over prompts, resampled over sandboxes, seeds and prompts.

    Sandboxes and prompts have the same weights in every call, so two methods that were measured on the same
    prompts are compared in pairs. With one sandbox, or one seed each, the resamples do not cover the
    differences between sandboxes or seeds. With few that differ much, intervals cover less than 95%: two or
    three values say little about their spread.

    Args:
        figures: of each sandbox, F figures of each seed and prompt, shape ``(F, S, P)``.
        statistic: takes the means, shape ``(F, ...)``, and returns one value for each, shape ``(...)``.
        stream: the name of the method; seeds of methods with other names are resampled independently.
    """
    points, drawn, count = [], [], 0
    for sandbox, of_sandbox in enumerate(figures):
        values_FSP = np.asarray(of_sandbox, dtype=np.float64)
        _, seeds, prompts = values_FSP.shape
        weights_PR = _weights_of_sandbox(prompts, sandbox)
        own = np.random.default_rng([_SEEDS, sandbox, crc32(stream.encode())])
        means_FRS = (values_FSP @ weights_PR).swapaxes(1, 2)
        drawn.append((statistic(means_FRS) * seed_weights(seeds, RESAMPLES, own)).sum(1))
        points.append(float(statistic(values_FSP.mean(2)).mean()))
        count += seeds * prompts
    weights_RB = seed_weights(len(points), RESAMPLES, np.random.default_rng([_SANDBOXES]))
    return Resampled(float(np.mean(points)), (np.stack(drawn, axis=1) * weights_RB).sum(1), count)


def crossed_bootstrap(
    figures: ArrayLike, statistic: Statistic, *, stream: str = ""
) -> MeanInterval:
    """The mean over seeds of a statistic of means over prompts, with its 95% interval, in one sandbox.

    Args:
        figures: F figures of each seed and prompt, shape ``(F, S, P)``.
        statistic: as in :func:`resample`.
        stream: as in :func:`resample`.
    """
    return resample([figures], statistic, stream).interval()
