r"""Inference-aware RL (arXiv 2412.15287): tune q so that best-of-N *of q* is best.

Maximises ``E[max reward of N samples of q] - beta KL(q || p)``. The exact gradient, with
S the other N - 1 samples, is

    grad E[max] = N E[(r(y) - max_S r)^+ grad log q(y)]

(derived here; for general rewards the paper approximates pi_bon by pi exp(lambda_N Q)/Z). It holds
because the best reward of the others alone does not depend on y. With G >= N samples of a prompt, the
expectation over S is the mean over all (N-1)-subsets of the other G - 1 samples, in closed form. So the
estimate is unbiased for any G. For binary rewards it equals the paper's positive-only form: a success
has weight N p_f^(N-1), where p_f is the probability of failure; this is the gradient of 1 - p_f^N (the
tests enumerate it). The weight is 0 for samples worse than the best of the others: once one candidate is
good, the rest may explore.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from training.objectives.protocol import Objective, SamplesNeeded, StepBatch, required, samples_of
from training.objectives.settings import BonSettings, Regularised
from vbon.maths.curves import log_comb

if TYPE_CHECKING:
    import torch


class BonAwareRl(BonSettings, Regularised, Objective):
    """Inference-aware RL: make best-of-N of the tuned policy best."""

    title: ClassVar[str] = "BoN-aware RL"
    source: ClassVar[str] = "Inference-Aware Fine-Tuning for Best-of-N, arXiv 2412.15287"
    learning_rate: ClassVar[float] = 3e-4
    reads_cache: ClassVar[bool] = False

    num_samples: int = Field(
        4, description="N of the best-of-N that the tuned policy will be used with"
    )

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Samples of the policy, at least N per prompt."""
        return SamplesNeeded(policy=True)

    def least_samples(self) -> int:
        """N, because each sample is compared with N - 1 others."""
        return self.num_samples

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """A scalar whose gradient is that of minus the objective."""
        import torch

        from training.objectives.policy_gradient import policy_gradient_loss

        samples = samples_of(batch.policy)
        gain = marginal_gain(samples.reward_B, samples.group_size, self.num_samples)
        score = -(self.num_samples * gain * samples.logprob_B).mean()
        kl = policy_gradient_loss(
            samples.logprob_BT,
            required(samples.kl_BT),
            torch.zeros_like(samples.reward_B),
            self.beta,
            samples.group_size,
        )
        return score + kl


def marginal_gain(reward_B: torch.Tensor, group_size: int, num_samples: int) -> torch.Tensor:
    """``E_S[(r_i - max_S r)^+]`` over the (N-1)-subsets S of the other samples, shape ``(B,)``."""
    import torch

    others = group_size - 1
    grouped = reward_B.detach().view(-1, group_size).double()
    log_total = log_comb(others, num_samples - 1)
    # Probability that the best of S is the k-th smallest of the others, k = 0..others-1.
    weight = torch.tensor(
        [math.exp(log_comb(k, num_samples - 2) - log_total) for k in range(others)],
        dtype=torch.float64,
        device=grouped.device,
    )
    index = torch.arange(group_size, device=grouped.device)
    columns = torch.stack([index[index != i] for i in range(group_size)])
    rivals = grouped[:, columns].sort(dim=-1).values
    gain = ((grouped[:, :, None] - rivals).clamp(min=0) * weight).sum(-1)
    return gain.flatten().to(reward_B)
