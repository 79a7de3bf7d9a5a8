"""The n at which the gold reward of best-of-n peaks: beyond it, a proxy reward is over-optimised.

HedgeTune (arXiv 2506.19248) finds the strength at which the expected true reward stops rising, as the root of
its derivative. With M samples that both models have scored, the unbiased curve of every n below M is known at
once (:mod:`vbon.maths.curves`), so here its highest point is taken, with an interval over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbon.maths.crossed_bootstrap import RESAMPLES, prompt_weights
from vbon.maths.curves import selection_matrix
from vbon.maths.intervals import MeanInterval
from vbon.maths.seeds import seed_of
from vbon.maths.statistics import bootstrap_mean

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GoldPeak:
    """The peak of the gold reward of best-of-n that selects by the reward.

    Attributes:
        n: the n with the highest mean gold reward.
        low, high: 95% interval of that n over prompts.
        gold: gold reward at n; as the highest of many it is a little flattering.
        gold_at_largest: gold reward of the largest n.
        largest: the largest n that was measured.
    """

    n: int
    low: int
    high: int
    gold: MeanInterval
    gold_at_largest: MeanInterval
    largest: int

    @property
    def resolved(self) -> bool:
        """True if the interval ends below the largest n, so that the gold reward was seen to fall."""
        return self.high < self.largest

    def __str__(self) -> str:
        """One or two sentences on where the gold reward peaks, and whether that is resolved."""
        remedy = "raise --reference-samples to measure larger ones"
        if self.n == self.largest:
            return (
                f"Gold reward of best-of-n is highest at n = {self.n} ({self.gold}), the largest measured; "
                f"where it peaks is not resolved: {remedy}."
            )
        found = (
            f"Gold reward of best-of-n peaks at n = {self.n} [{self.low}, {self.high}] with {self.gold}; at "
            f"n = {self.largest} it is {self.gold_at_largest}."
        )
        if self.resolved:
            return f"{found} A larger n over-optimises the reward."
        return f"{found} The interval reaches the largest n measured, so a fall is not shown: {remedy}."


def gold_curves(rewards: Sequence[Float], gold: Sequence[Float], largest: int) -> Float:
    """Each prompt's unbiased gold reward of best-of-n for n = 1..largest, shape ``(prompts, largest)``.

    Raises:
        ValueError: a prompt has fewer than ``largest`` samples.
    """
    matrices: dict[int, Float] = {}
    found = np.empty((len(rewards), largest))
    for place, (own, values) in enumerate(zip(rewards, gold, strict=True)):
        total = len(own)
        if total < largest:
            raise ValueError(f"a prompt has {total} samples, too few for best-of-{largest}")
        if total not in matrices:
            matrices[total] = selection_matrix(total)[:largest]
        order = np.lexsort((-np.arange(total), own))  # of equal rewards the lower index wins
        found[place] = matrices[total] @ values[order]
    return found


def gold_peak(rewards: Sequence[Float], gold: Sequence[Float], largest: int) -> GoldPeak:
    """The peak over n = 1..largest, from each prompt's rewards and gold rewards of the same samples."""
    curves = gold_curves(rewards, gold, largest)
    best = int(curves.mean(axis=0).argmax())
    rng = np.random.default_rng(seed_of(f"gold-peak:{len(curves)}"))
    peaks = (prompt_weights(len(curves), RESAMPLES, rng) @ curves).argmax(axis=1) + 1
    low, high = np.quantile(peaks, [0.025, 0.975], method="inverted_cdf")
    return GoldPeak(
        best + 1,
        int(low),
        int(high),
        bootstrap_mean(curves[:, best].tolist()),
        bootstrap_mean(curves[:, -1].tolist()),
        largest,
    )
