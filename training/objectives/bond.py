r"""BOND (arXiv 2407.14622): the Jeffreys divergence from the best-of-N distribution.

    (1 - b) KL(p_bon || q) + b KL(q || p_bon)

Forward part: SFT on best-of-N samples from the cache. Backward part: policy gradient with the quantile
reward log F<=, because p_bon(y) is taken to be p(y) F<=(y)^(N-1) times a constant:
KL(q || p_bon) = KL(q || p) - (N-1) E_q[log F<=] + const. With strictly ordered rewards
p_bon = p F<=^(N-1) sum_i (F/F<=)^(i-1). So the "constant" is a factor between 1 and N, which tends to N as
p(y) tends to 0: the form is exact for long texts, and approximate for very short ones. F<= is estimated
from the cache. (The vBoN bound has log F instead; the two differ only at the lowest ranks.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from training.objectives.protocol import (
    CachedChoice,
    Objective,
    SamplesNeeded,
    StepBatch,
    required,
    samples_of,
)
from training.objectives.settings import BonSettings

if TYPE_CHECKING:
    import torch


class Bond(BonSettings, Objective):
    """BOND: Jeffreys divergence, quantile reward."""

    title: ClassVar[str] = "BOND"
    source: ClassVar[str] = "BOND: Aligning LLMs with Best-of-N Distillation, arXiv 2407.14622"
    strict_order: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-4

    backward_weight: float = Field(
        0.5, ge=0, le=1, description="b, weight of the reverse KL; the forward KL has 1 - b"
    )

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Samples of the policy and bests of N from the cache."""
        return SamplesNeeded(policy=True, cached=CachedChoice("best", self.num_samples))

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """A scalar whose gradient is that of the weighted sum of both divergences in nats."""
        from training.objectives.policy_gradient import policy_gradient_loss

        samples = samples_of(batch.policy)
        forward = -samples_of(batch.cached).logprob_B.mean()
        backward = policy_gradient_loss(
            samples.logprob_BT,
            required(samples.kl_BT),
            (self.num_samples - 1) * samples.log_cdf_le_B,
            1.0,
            samples.group_size,
        )
        return (1 - self.backward_weight) * forward + self.backward_weight * backward
