"""The certainty of a policy about an answer, from the log-probabilities of its likeliest tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mean_certainty(top_logprobs: Sequence[Sequence[float]], count: int) -> float:
    """Mean over positions of KL(U || p), U uniform over the ``count`` likeliest tokens; nats, at least 0.

    Args:
        top_logprobs: log-probabilities of the likeliest tokens at each position, highest first; at least
            ``count`` each. Without positions the certainty is 0.
    """
    if not top_logprobs:
        return 0.0
    values = np.array([position[:count] for position in top_logprobs], dtype=np.float64)
    return float(-values.mean() - np.log(count))
