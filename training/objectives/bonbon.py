r"""BoNBoN alignment (arXiv 2406.00832): SFT on the best of N, plus IPO on best against worst.

    loss = a (-log q(best)) + (1 - a) [(log q - log p)(best) - (log q - log p)(worst) - 1/(2 beta*)]^2
    1/(2 beta*) = (n - 1) sum_{k=1..n-1} 1/k

The target is the mean margin of the best-of-n distribution itself, so beta* is not tuned. Under
p_bon = n p F^(n-1) the margin is (n-1)(log F(best) - log F(worst)). As E[log F(best)] = -1/n and
E[log F(worst)] = -H_n, its mean is (n-1)(H_n - 1/n) = (n-1) H_{n-1} (derived here; n = 8 gives
beta* = 0.0275482). The official code has a = .005. Tied pairs are left out of the second term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from training.objectives.dpo import pair_margin
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


class Bonbon(BonSettings, Objective):
    """BoNBoN: supervised on the best of N plus IPO on best against worst."""

    title: ClassVar[str] = "BoNBoN"
    source: ClassVar[str] = "BoNBoN Alignment, arXiv 2406.00832"
    strict_order: ClassVar[bool] = True

    sft_weight: float = Field(
        0.005, ge=0, le=1, description="weight of the SFT part; the IPO part has the rest"
    )

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Best and worst of N from the cache, with ``log p``."""
        return SamplesNeeded(cached=CachedChoice("best-worst", self.num_samples, ref_logprob=True))

    @property
    def target_margin(self) -> float:
        """Target of the margin, ``1 / (2 beta*)``, in nats."""
        n = self.num_samples
        return (n - 1) * sum(1 / k for k in range(1, n))

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """Weighted sum of the SFT and the IPO part, each a mean over the pairs."""
        samples = samples_of(batch.cached)
        margin, told_apart = pair_margin(samples.log_ratio_B, samples.reward_B)
        ipo = ((margin - self.target_margin) ** 2 * told_apart).mean()
        best = samples.logprob_B.view(-1, 2)[:, 0]
        return -self.sft_weight * best.mean() + (1 - self.sft_weight) * ipo
