r"""Inference-aware supervised fine-tuning (arXiv 2412.15287): make best-of-N of q answer as an expert.

Maximises ``E_expert[log q_bon(y*)]``, where q_bon is the best-of-N distribution *of q*. If y* is rare,

    log q_bon(y*) = log N + log q(y*) + (N-1) log F_q(y*)      (the i = 1 bound, as in vBoN)
    grad F_q(y*)  = E_{y ~ q}[1{r(y) < r(y*)} grad log q(y)]

Departure: the paper approximates q_bon by q exp(lambda_N Q_q)/Z; the form above needs neither lambda nor
Z. With G samples of q, of which ``count`` are below y*, the gradient of log F_q is estimated with the
weights ``1{r(y) < r(y*)} G/count - 1``, whose first term is 0 if no sample is below. Its mean is the true
gradient times ``1 - (1 - F_q)^G`` exactly (the tests enumerate it).

An expert is the best of ``expert_samples`` cached reference samples. Best-of-N of best-of-K is best-of-NK,
so the optimum is q = best-of-(expert_samples / N) of p: then q_bon is the expert's distribution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

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


class BonAwareSft(BonSettings, Objective):
    """Inference-aware SFT: make best-of-N of the tuned policy answer as an expert."""

    title: ClassVar[str] = "BoN-aware SFT"
    source: ClassVar[str] = "Inference-Aware Fine-Tuning for Best-of-N, arXiv 2412.15287"
    strict_order: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-4

    num_samples: int = Field(
        4, description="N of the best-of-N that the tuned policy will be used with"
    )
    expert_samples: int = Field(
        64,
        description="an expert's answer is the best of this many reference samples; must exceed N",
    )

    @model_validator(mode="after")
    def _expert_is_better(self) -> BonAwareSft:
        if self.expert_samples <= self.num_samples:
            raise ValueError(
                f"expert_samples {self.expert_samples} must be above num_samples "
                f"{self.num_samples}; otherwise the reference policy is already the optimum"
            )
        return self

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Samples of the policy, and experts' answers from the cache."""
        return SamplesNeeded(policy=True, cached=CachedChoice("best", self.expert_samples))

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """A scalar whose gradient is that of minus the mean of ``log q_bon`` over experts."""
        samples, experts = samples_of(batch.policy), samples_of(batch.cached)
        expert_reward = experts.reward_B.view(-1, experts.group_size)
        weight = win_gradient_weights(
            samples.reward_B.view(-1, samples.group_size), expert_reward
        ).flatten()
        lifted = (weight * samples.logprob_B).mean()
        return -experts.logprob_B.mean() - (self.num_samples - 1) * lifted


def win_gradient_weights(reward_PG: torch.Tensor, expert_PE: torch.Tensor) -> torch.Tensor:
    """Weights w of the policy's samples, shape ``(P, G)``.

    ``mean_g w_g grad log q(y_g)`` estimates ``grad mean_e log F_q(y*_e)`` of each prompt. The -1 has
    mean zero only over all draws, so it also stands where no sample is below the expert.

    Args:
        reward_PG: rewards of G samples per prompt.
        expert_PE: rewards of E experts per prompt.
    """
    group, experts = reward_PG.shape[1], expert_PE.shape[1]
    below = (reward_PG[:, :, None] < expert_PE[:, None, :]).double()  # P, G, E
    count = below.sum(1, keepdim=True)
    share_PE1 = (group / count.clamp(min=1)).mT
    return ((below @ share_PE1)[:, :, 0] / experts - 1).to(reward_PG)  # the mean over experts
