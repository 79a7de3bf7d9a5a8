"""Base class of objectives of the form ``E_q[R] - beta KL(q || p)``; each defines its R and beta."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from training.objectives.protocol import (
    Baseline,
    KlEstimator,
    Objective,
    Samples,
    SamplesNeeded,
    StepBatch,
    required,
    samples_of,
)

if TYPE_CHECKING:
    import torch


class RegularisedRL(Objective):
    """KL-regularised RL with on-policy samples, a reward at the end of each, and exact or sampled KL."""

    kl_estimator: KlEstimator = Field(
        "exact",
        description="exact: per token, with KL-to-go; sampled: once per response (textbook RLOO)",
    )
    baseline: Baseline = Field(
        "leave-one-out", description="mean over the other samples of the prompt, or none"
    )

    @property
    def kl_coefficient(self) -> float:
        """beta, the weight of the KL."""
        raise NotImplementedError

    def sequence_reward(self, samples: Samples) -> torch.Tensor:
        """R of each sample, shape ``(B,)``, without gradient."""
        raise NotImplementedError

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Samples of the policy."""
        return SamplesNeeded(policy=True)

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """A scalar whose gradient estimates that of minus the objective."""
        from training.objectives.policy_gradient import policy_gradient_loss, sampled_kl_loss

        samples = samples_of(batch.policy)
        reward, beta = self.sequence_reward(samples), self.kl_coefficient
        if self.kl_estimator == "sampled":
            return sampled_kl_loss(
                samples.logprob_BT,
                required(samples.ref_logprob_B),
                reward,
                beta,
                samples.group_size,
                baseline=self.baseline,
            )
        return policy_gradient_loss(
            samples.logprob_BT,
            required(samples.kl_BT),
            reward,
            beta,
            samples.group_size,
            baseline=self.baseline,
        )
