"""A timed training step, and the clock that both sides of the benchmark share."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """The volume and timings of one optimizer step.

    Attributes:
        seconds: duration of the whole step, counted from the end of the previous one.
        samples: responses sampled and trained on.
        tokens: tokens of these responses, EOS included.
        sample_s: seconds spent generating.
        score_s: seconds spent in the reward model.
        learn_s: the remaining seconds: log-probabilities of policy and reference, loss, backward
            pass, optimizer.
    """

    seconds: float
    samples: int
    tokens: int
    sample_s: float
    score_s: float
    learn_s: float


def synchronized_time() -> float:
    """``time.perf_counter()`` in seconds, read after the GPU has finished all queued work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
