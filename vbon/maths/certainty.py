"""The certainty of a policy about an answer, from the log-probabilities of its likeliest tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Tokens that a format forbids have a log-probability of -inf, for which vLLM's HTTP server sends this number.
_FORBIDDEN = -9999.0


def mean_certainty(top_logprobs: Sequence[Sequence[float]], count: int) -> float:
    """Mean over positions of KL(U || p), U uniform over the ``count`` likeliest tokens; nats, at least 0.

    Where a format allows fewer tokens, U is uniform over these, so a position without a choice has 0.

    Args:
        top_logprobs: log-probabilities of the likeliest tokens at each position, highest first; at least
            ``count`` each. Without positions the certainty is 0.
    """
    if not top_logprobs:
        return 0.0
    values = np.array([position[:count] for position in top_logprobs], dtype=np.float64)
    allowed = values > _FORBIDDEN
    counts = np.maximum(1, allowed.sum(axis=1))
    sums = np.where(allowed, values, 0.0).sum(axis=1)
    return float((-sums / counts - np.log(counts)).mean())
