"""What the objectives of the form ``E_q[R] - beta KL(q || p)`` have in common: all but R and beta."""

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
    """On-policy samples, a reward at the end of each, exact KL from the reference."""

    kl_estimator: KlEstimator = Field(
        "exact", description="exact per token with KL-to-go, or sampled at the end (textbook RLOO)"
    )
    baseline: Baseline = Field("leave-one-out", description="over the other samples of the prompt")

    @property
    def kl_coefficient(self) -> float:
        """beta."""
        raise NotImplementedError

    def sequence_reward(self, samples: Samples) -> torch.Tensor:
        """R of each sample, shape ``(B,)``, no gradient."""
        raise NotImplementedError

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Samples of the policy."""
        return SamplesNeeded(policy=True)

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """Minus the objective, up to a constant, in gradient."""
        from training.objectives.policy_gradient import policy_gradient_loss, sampled_kl_loss

        samples = samples_of(batch.policy)
        reward, beta = self.sequence_reward(samples), self.kl_coefficient
        if self.kl_estimator == "sampled":
            return sampled_kl_loss(
                samples.logprob_BT, required(samples.ref_logprob_B), reward, beta,
                samples.group_size, baseline=self.baseline,
            )  # fmt: skip
        return policy_gradient_loss(
            samples.logprob_BT, required(samples.kl_BT), reward, beta, samples.group_size,
            baseline=self.baseline,
        )  # fmt: skip
