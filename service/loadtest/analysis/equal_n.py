"""Computes the N at which best-of-N has the reward of a tuned policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.loadtest.analysis.intervals import Float, resampled_means

_TAIL = 0.025
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class EqualN:
    """The N at which best-of-N has a given reward, interpolated linearly between integers.

    Attributes:
        beyond: True if the curve stays below the reward (``n`` is its end) or starts above it (``n`` is 1).
        low_open: True if the interval reaches below one sample; ``low`` is then where the curve starts.
        high_open: True if the interval reaches above the curve; ``high`` is then where it ends.
    """

    n: float
    low: float
    high: float
    beyond: bool
    low_open: bool = False
    high_open: bool = False


def equal_n(matrix: Float, tuned: Float) -> EqualN:
    """The N at which the mean best-of-n curve reaches the mean tuned reward, with a 95% interval.

    The interval is over prompts.

    Args:
        matrix: expected best of 1..N by prompt, shape ``(prompts, N)``.
        tuned: the tuned variant's mean reward on the same prompts, shape ``(prompts,)``.
    """
    point, beyond = crossing(matrix.mean(axis=0), float(tuned.mean()))
    means = resampled_means(np.column_stack([matrix, tuned]), _RESAMPLES)
    curves, targets = means[:, :-1], means[:, -1]
    drawn = crossings(curves, targets)
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return EqualN(
        point,
        min(point, float(low)),
        max(point, float(high)),
        beyond,
        low_open=float(np.mean(targets < curves[:, 0])) > _TAIL,
        high_open=float(np.mean(targets > curves.max(axis=1))) > _TAIL,
    )


def crossing(curve: Float, target: float) -> tuple[float, bool]:
    """The lowest n at which a curve over 1..N reaches a target, and True if it is outside 1..N.

    A curve of gold rewards may fall again, because best-of-n selects by another reward.
    """
    n = float(crossings(curve[None, :], np.array([target]))[0])
    return n, bool(target < curve[0] or target > curve.max())


def crossings(curves: Float, targets: Float) -> Float:
    """The lowest n at which each curve reaches its target; 1 or N where it lies outside.

    Args:
        curves: shape ``(curves, N)``.
        targets: shape ``(curves,)``.
    """
    reached = curves >= targets[:, None]
    above = np.argmax(reached, axis=1)
    rows = np.arange(len(curves))
    before = np.maximum(above - 1, 0)
    step = curves[rows, above] - curves[rows, before]
    part = (targets - curves[rows, before]) / np.where(step > 0, step, 1.0)
    found = np.where(above == 0, 1.0, above + part)
    return np.where(reached.any(axis=1), found, float(curves.shape[1]))
