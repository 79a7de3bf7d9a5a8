"""Computes the N at which best-of-N has the reward of a tuned policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.loadtest.analysis.intervals import Float, resamples


@dataclass(frozen=True, slots=True)
class EqualN:
    """The N at which best-of-N has a given reward, interpolated linearly between integers.

    Attributes:
        beyond: True if the curve ends below the reward (``n`` is its end) or starts above it (``n`` is 1).
    """

    n: float
    low: float
    high: float
    beyond: bool


def equal_n(matrix: Float, tuned: Float) -> EqualN:
    """The N at which the mean best-of-n curve reaches the mean tuned reward, with a 95% interval.

    The interval is over prompts.

    Args:
        matrix: expected best of 1..N by prompt, shape ``(prompts, N)``.
        tuned: the tuned variant's mean reward on the same prompts, shape ``(prompts,)``.
    """
    point, beyond = crossing(matrix.mean(axis=0), float(tuned.mean()))
    picks = resamples(len(tuned))
    drawn = [crossing(matrix[p].mean(axis=0), float(tuned[p].mean()))[0] for p in picks[:1000]]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return EqualN(point, min(point, float(low)), max(point, float(high)), beyond)


def crossing(curve: Float, target: float) -> tuple[float, bool]:
    """The lowest n at which a curve over 1..N reaches a target, and True if it is outside 1..N.

    A curve of gold rewards may fall again, because best-of-n selects by another reward.
    """
    if target <= curve[0]:
        return 1.0, target < curve[0]
    if target > curve.max():
        return float(len(curve)), True
    above = int(np.argmax(curve >= target))
    step = curve[above] - curve[above - 1]
    return above + float((target - curve[above - 1]) / step), False
