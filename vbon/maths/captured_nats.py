"""Captured nats: the part of best-of-N's KL that a tuned policy has learnt.

For best-of-N of the reference policy p, and a tuned policy q, on one prompt:

    C = E_{y ~ best-of-N}[log q(y) - log p(y)] = KL(best-of-N || p) - KL(best-of-N || q)

So C is at most KL(best-of-N || p), which only best-of-N itself reaches, and that is at most
``log N - (N-1)/N``. It is 0 for the reference policy, and negative for a policy that moved away from the
answers of best-of-N. The expectation is estimated without bias from any scored samples of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vbon.maths.curves import selection_weights
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import bootstrap_mean

Float = NDArray[np.float64]


def captured_nats(rewards: Float, log_ratios: Float, num_samples: int) -> float:
    """Unbiased estimate of the captured nats of one prompt, from M samples of the reference.

    One estimate may be above the bound; only its expectation is not.

    Args:
        rewards: of the samples, shape ``(M,)``; ties go to the lower index, as in the service's ``bon``.
        log_ratios: ``log q(y) - log p(y)`` of the samples in nats, shape ``(M,)``. Those of samples that
            cannot be the best of N are not used.
        num_samples: N.

    Raises:
        ValueError: N is outside ``1..M``.
    """
    weights = selection_weights(rewards, num_samples)
    used = weights > 0
    return float(weights[used] @ log_ratios[used])


def captured_interval(nats: Sequence[float] | Float) -> MeanInterval:
    """The mean of the prompts' captured nats with its 95% bootstrap interval, which contains the mean.

    Raises:
        ValueError: there are no prompts.
    """
    found = bootstrap_mean(nats)
    return MeanInterval(
        found.mean, min(found.low, found.mean), max(found.high, found.mean), found.count
    )
