r"""KL-regularised RL: maximise ``E_q[R] - beta KL(q || p)``, R the raw reward or a transform of its quantile.

The vBoN paper (arXiv 2407.06057) compares with it on the raw reward, trained by PPO. Here it is trained by
REINFORCE with a leave-one-out baseline (RLOO, arXiv 2402.14740). Its optimum is ``p exp(R / beta) / Z``, so a
suitable beta depends on the scale of R.

InfAlign (arXiv 2412.19792) calibrates the reward first: with F the share of the prompt's cached reference
rewards below the sample's, R is a rising function of F. The scale of the reward model, and its differences
between prompts, then no longer matter. For a policy that best-of-n will be drawn from the paper takes an
exponential. The transforms:

    quantile   F                 the win rate over the reference; optimum p exp(F / beta) / Z
    log        log F             vBoN: with beta = 1 / (N - 1) the optimum is p F^(N-1) / Z, and the loss that
                                 of `vbon` with bound `lower`, no floor and no cached samples
    exp        exp(t (F - 1))    the paper's exp(t F), divided by e^t, so that the largest R is 1

F is estimated by ``(rank + 1) / (M + 1)`` with M cached rewards, so the logarithm is finite. Equal rewards do
not count as below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from training.objectives.protocol import Samples
from training.objectives.regularised_rl import RegularisedRL
from training.objectives.settings import Regularised

if TYPE_CHECKING:
    import torch


class KlRl(Regularised, RegularisedRL):
    """KL-regularised RL on the reward, or on a transform of its quantile (RLOO)."""

    title: ClassVar[str] = "KL-regularised RL"
    source: ClassVar[str] = "RLOO, arXiv 2402.14740; the baseline of arXiv 2407.06057"
    learning_rate: ClassVar[float] = 3e-4
    reads_cache: ClassVar[bool] = False

    beta: float = Field(
        1.0, gt=0, description="weight of the KL from the reference, in units of reward per nat"
    )
    transform: Literal["none", "quantile", "log", "exp"] = Field(
        "none",
        description="what the reward is: none, the raw reward; or, with F its quantile among the cached "
        "rewards: quantile, F; log, log F, which is vBoN with beta 1/(N-1); exp, exp(tilt (F - 1)), for "
        "policies that best-of-n is drawn from (InfAlign)",
    )
    tilt: float = Field(
        10.0,
        gt=0,
        le=500,
        description="t of transform exp: the higher, the more the best samples count",
    )

    @property
    def uses_cache(self) -> bool:
        """True with a transform, which ranks rewards among cached ones."""
        return self.transform != "none"

    @property
    def kl_coefficient(self) -> float:
        """beta, in units of reward per nat."""
        return self.beta

    def sequence_reward(self, samples: Samples) -> torch.Tensor:
        """The raw or transformed rewards, shape ``(B,)``."""
        if self.transform == "quantile":
            return samples.log_cdf_B.exp()
        if self.transform == "log":
            return samples.log_cdf_B
        if self.transform == "exp":
            return (self.tilt * (samples.log_cdf_B.exp() - 1)).exp()
        return samples.reward_B
