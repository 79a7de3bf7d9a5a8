"""What the on-policy trainer asks of an objective. Shapes: B sequences, one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """Samples of the policy being tuned, scored.

    Attributes:
        log_cdf_B: ``log F^`` of each sample among the reference rewards of its prompt.
        reward_B: raw rewards.
        ref_logprob_B: ``log p(y)`` in nats, summed over response tokens only.
    """

    log_cdf_B: torch.Tensor
    reward_B: torch.Tensor
    ref_logprob_B: torch.Tensor


class OnPolicyObjective(Protocol):
    """Maximises ``E_q[sequence_reward] - kl_coefficient KL(q || p)``; knows no model and no file."""

    @property
    def kl_coefficient(self) -> float:
        """Weight of KL(q || p) against the sequence reward."""

    def __init__(self, num_samples: int) -> None: ...

    def sequence_reward(self, batch: ScoredBatch) -> torch.Tensor:
        """The part of the objective paid at the end of a sample, shape ``(B,)``, no gradient."""
