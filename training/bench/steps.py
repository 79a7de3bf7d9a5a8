"""A timed training step and the clock that both sides of the bench share."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step.

    Attributes:
        seconds: all of it, from the end of the step before.
        samples: drawn and trained on.
        tokens: theirs, EOS included.
        sample_s: generating.
        score_s: the reward model.
        learn_s: the rest: log-probabilities of policy and reference, loss, backward, optimizer.
    """

    seconds: float
    samples: int
    tokens: int
    sample_s: float
    score_s: float
    learn_s: float


def now() -> float:
    """Seconds, after what a GPU still has to do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
