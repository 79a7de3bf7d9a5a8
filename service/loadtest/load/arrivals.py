r"""Computes the times at which requests are due in an open loop.

Gaps are gamma distributed with mean ``1 / rate`` and shape ``burstiness``, as in ``vllm bench serve``.
Shape 1 is the exponential distribution, so arrivals are a Poisson process; the coefficient of variation is
:math:`1/\sqrt{burstiness}`. A constant rate is the limit of a large shape.

During a ramp the rate rises linearly from 0: arrivals are sampled at rate 1, and their times are mapped
through the inverse of the expected number of arrivals, :math:`\Lambda(t) = r t^2 / 2T` until the ramp ends at
T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np


def unit_arrivals(
    arrival: Literal["random", "constant"], burstiness: float, seed: int
) -> Iterator[float]:
    """Endless ascending arrival times at a mean rate of 1 per second."""
    rng = np.random.default_rng(seed)
    moment = 0.0
    while True:
        gap = 1.0 if arrival == "constant" else float(rng.gamma(burstiness, 1 / burstiness))
        moment += gap
        yield moment


def due_times(units: Iterator[float], rate: float, ramp_s: float = 0.0) -> Iterator[float]:
    """Seconds since the start at which requests are due; during ``ramp_s`` the rate rises from 0."""
    in_ramp = rate * ramp_s / 2
    for unit in units:
        if unit < in_ramp:
            yield math.sqrt(2 * ramp_s * unit / rate)
        else:
            yield ramp_s + (unit - in_ramp) / rate
