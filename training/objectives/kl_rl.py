"""KL-regularised RL on the raw reward: maximise ``E_q[r] - beta KL(q || p)``.

The vBoN paper (arXiv 2407.06057) compares with it, trained by PPO. Here it is trained by REINFORCE with a
leave-one-out baseline (RLOO, arXiv 2402.14740). Its optimum is ``p exp(r / beta) / Z``, so a suitable beta
depends on the scale of the reward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from training.objectives.protocol import Samples
from training.objectives.regularised_rl import RegularisedRL
from training.objectives.settings import Regularised

if TYPE_CHECKING:
    import torch


class KlRl(Regularised, RegularisedRL):
    """KL-regularised RL on the raw reward (RLOO)."""

    title: ClassVar[str] = "KL-regularised RL"
    source: ClassVar[str] = "RLOO, arXiv 2402.14740; the baseline of arXiv 2407.06057"
    learning_rate: ClassVar[float] = 3e-4
    reads_cache: ClassVar[bool] = False

    beta: float = Field(
        1.0, gt=0, description="weight of the KL from the reference, in units of reward per nat"
    )

    @property
    def kl_coefficient(self) -> float:
        """beta, in units of reward per nat."""
        return self.beta

    def sequence_reward(self, samples: Samples) -> torch.Tensor:
        """The raw rewards, shape ``(B,)``."""
        return samples.reward_B
