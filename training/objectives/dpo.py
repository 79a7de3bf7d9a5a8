r"""Direct Preference Optimization (arXiv 2305.18290) on the best and worst of N reference samples.

    loss = -log sigmoid(beta [(log q - log p)(best) - (log q - log p)(worst)])

Pairs come from the reward cache: p drew both samples, and the reward model is the annotator. Pairs with
equal rewards carry no information and are left out. The optimum is p exp(r~/beta)/Z only if a
Bradley-Terry model with reward r~ fits the pairs. A deterministic annotator does not bound the margin, so
only the number of steps bounds the KL.
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
from training.objectives.settings import BonSettings, Regularised

if TYPE_CHECKING:
    import torch


class Dpo(BonSettings, Regularised, Objective):
    """DPO on the best against the worst of N cached samples."""

    title: ClassVar[str] = "DPO, best against worst of N"
    source: ClassVar[str] = "Direct Preference Optimization, arXiv 2305.18290"

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Best and worst of N from the cache, with ``log p``."""
        return SamplesNeeded(cached=CachedChoice("best-worst", self.num_samples, ref_logprob=True))

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """Mean over all pairs; a tied pair adds 0, so that micro-batches add up to the whole batch."""
        import torch

        samples = samples_of(batch.cached)
        margin, told_apart = pair_margin(samples.log_ratio_B, samples.reward_B)
        losses = -torch.nn.functional.logsigmoid(self.beta * margin)
        return (losses * told_apart).mean()


def pair_margin(
    log_ratio_B: torch.Tensor, reward_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Margin of each pair of rows, and 1.0 if their rewards differ or 0.0 if not; both ``(B/2,)``.

    The margin is the log-ratio of the best minus that of the worst.
    """
    ratio, reward = log_ratio_B.view(-1, 2), reward_B.view(-1, 2)
    return ratio[:, 0] - ratio[:, 1], (reward[:, 0] > reward[:, 1]).to(ratio)
