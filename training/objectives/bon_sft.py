"""Supervised fine-tuning on the best of N reference samples: minimise ``E_{p_bon}[-log q]``.

This is the forward KL(p_bon || q) up to a constant. It covers modes, and needs no samples of q. It is also
known as best-of-n distillation by SFT, or rejection-sampling fine-tuning, and is a baseline of the vBoN
paper (arXiv 2407.06057). The samples are independent bests of N among the cached samples of p.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from training.objectives.protocol import (
    CachedChoice,
    Objective,
    SamplesNeeded,
    StepBatch,
    samples_of,
)
from training.objectives.settings import BonSettings

if TYPE_CHECKING:
    import torch


class BonSft(BonSettings, Objective):
    """Supervised fine-tuning on the best of N cached samples."""

    title: ClassVar[str] = "BoN-SFT"
    source: ClassVar[str] = "baseline of arXiv 2407.06057"
    learning_rate: ClassVar[float] = 6e-4

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Bests of N from the cache."""
        return SamplesNeeded(cached=CachedChoice("best", self.num_samples))

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """Mean negative log-likelihood of a whole response, in nats."""
        return -samples_of(batch.cached).logprob_B.mean()
