r"""Inference-aware RL (arXiv 2412.15287): tune q so that best-of-N *of q* is best.

Maximises ``E[max reward of N samples of q] - beta KL(q || p)``. The exact gradient (derived here; the paper
approximates pi_bon by pi exp(lambda_N Q)/Z for general rewards): with S the other N - 1 samples,

    grad E[max] = N E[(r(y) - max_S r)^+ grad log q(y)],

because what the others' best is worth without y does not depend on y. From G >= N samples of a prompt
the expectation over S is taken over all (N-1)-subsets of the other G - 1 in closed form, so the
estimate is unbiased for any G. For binary rewards it is the paper's positive-only form: a success
weighs N p_f^(N-1), which is the gradient of 1 - p_f^N (enumerated in the tests). It vanishes for samples
below their peers: once some candidate is good, the rest may explore.
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

    num_samples: int = Field(4, description="N that will be drawn from the tuned policy")

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Samples of the policy, at least N a prompt."""
        return SamplesNeeded(policy=True)

    def least_samples(self) -> int:
        """N: each sample needs N - 1 others."""
        return self.num_samples

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """Minus the objective, in gradient."""
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
    # P[the best of S is the k-th smallest of the others], k = 0..others-1
    weight = torch.tensor(
        [math.exp(log_comb(k, num_samples - 2) - log_total) for k in range(others)],
        dtype=torch.float64, device=grouped.device,
    )  # fmt: skip
    index = torch.arange(group_size, device=grouped.device)
    columns = torch.stack([index[index != i] for i in range(group_size)])
    rivals = grouped[:, columns].sort(dim=-1).values
    gain = ((grouped[:, :, None] - rivals).clamp(min=0) * weight).sum(-1)
    return gain.flatten().to(reward_B)
