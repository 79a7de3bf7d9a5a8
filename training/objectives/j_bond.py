r"""J-BOND (arXiv 2407.14622, sec. 5): iterated best-of-2 against a moving anchor.

A step draws samples y of q and two samples of the anchor, and descends the gradient of

    (1 - b) (-log q(better anchor sample)) + b [KL(q || anchor) - E_q r_J] + g KL(q || anchor)
    r_J(y) = -log 16 if r(y) < both anchor rewards, else 0;   anchor <- (1 - eta) anchor + eta q

The first part is the forward KL to best-of-2 of the anchor; the second is the reverse KL with r_J in place
of log F<=. As P(y below both) = (1 - F<=)^2 over samples of the anchor, E[r_J] = -log 16 (1 - F<=)^2. Its
mean under the anchor, -log(16)/3 = -.924, is close to the mean -1 of log F<=, and unlike log F<= it is
bounded. As the anchor moves, N is not a setting: iterated best-of-2 climbs to best-of-2^k, and steps x eta
determines how far.

Departures: the paper draws one sample of q per prompt and averages over the batch; here there are several,
with their leave-one-out baseline, which has the same expected gradient and less variance. The KL from the
anchor is exact per token instead of sampled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from training.objectives.protocol import Objective, SamplesNeeded, StepBatch, required, samples_of

if TYPE_CHECKING:
    import torch

WORST_REWARD = -math.log(16)


class JBond(Objective):
    """J-BOND: iterated best-of-2 of a moving anchor."""

    title: ClassVar[str] = "J-BOND"
    source: ClassVar[str] = "BOND: Aligning LLMs with Best-of-N Distillation, arXiv 2407.14622"
    strict_order: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-4

    backward_weight: float = Field(
        0.5, ge=0, le=1, description="b, weight of the reverse KL; the forward KL has 1 - b"
    )
    anchor_weight: float = Field(0.0, ge=0, description="g, extra weight of KL(q || anchor)")
    anchor_rate: float = Field(0.02, gt=0, le=1, description="eta of the moving anchor")

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Samples of the policy, and two samples of the moving anchor."""
        return SamplesNeeded(
            policy=True, anchor_samples=2, anchor="moving", anchor_rate=self.anchor_rate
        )

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """A scalar whose gradient is that of the sum of the three parts in nats."""
        from training.objectives.policy_gradient import policy_gradient_loss

        samples, anchors = samples_of(batch.policy), samples_of(batch.anchor)
        anchor_reward = anchors.reward_B.view(-1, 2)
        better = anchors.logprob_B.view(-1, 2).gather(1, anchor_reward.argmax(1, keepdim=True))
        worst = anchor_reward.amin(1).repeat_interleave(samples.group_size)
        b = self.backward_weight
        reward = b * WORST_REWARD * (samples.reward_B < worst)
        backward = policy_gradient_loss(
            samples.logprob_BT,
            required(samples.kl_BT),
            reward,
            b + self.anchor_weight,
            samples.group_size,
        )
        return -(1 - b) * better.mean() + backward
