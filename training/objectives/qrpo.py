r"""Quantile Reward Policy Optimization (arXiv 2507.08068): pointwise regression, offline.

The quantile of a reference sample's reward is uniform on [0, 1]. So if R is a function of the quantile, the
partition function of p exp(R/beta) is known in closed form, and each sample gives a regression target by
itself:

    loss = [R(y) - beta log Z - beta (log q - log p)(y)]^2
    identity: R = F<=,      Z = beta (exp(1/beta) - 1)
    log:      R = log F<=,  Z = 1 / (1 + 1/beta)

The minimum is q = p exp(R/beta)/Z. With ``log`` and beta = 1/(N-1) this is p F<=^(N-1) N, the target of
vBoN. A cached sample is itself one of the M that give the quantile, so that of the k-th smallest reward is
(k - 1/2)/M: the mean over a cache is then 1/2 exactly. It has only M values, so the error of Z is O(1/M).
With tied rewards, which share the mean of their ranks, the quantile is not uniform, and Z is wrong.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from training.objectives.protocol import (
    CachedChoice,
    Objective,
    SamplesNeeded,
    StepBatch,
    required,
    samples_of,
)
from training.objectives.settings import Regularised

if TYPE_CHECKING:
    import torch


class Qrpo(Regularised, Objective):
    """QRPO: regression of the log-ratio onto the quantile reward, offline."""

    title: ClassVar[str] = "QRPO"
    source: ClassVar[str] = "Quantile Reward Policy Optimization, arXiv 2507.08068"
    strict_order: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-4

    transform: Literal["identity", "log"] = Field(
        "identity", description="reward R as a function of the quantile F<="
    )

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Any samples from the cache, with ``log p``."""
        return SamplesNeeded(cached=CachedChoice("uniform", ref_logprob=True))

    @property
    def scaled_log_partition(self) -> float:
        """``beta log Z``, in units of R."""
        if self.transform == "log":
            return -self.beta * math.log1p(1 / self.beta)
        # beta log(beta (e^(1/beta) - 1)), rearranged because e^(1/beta) overflows for small beta
        return 1 + self.beta * (math.log(self.beta) + math.log1p(-math.exp(-1 / self.beta)))

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """Mean squared residual divided by beta^2, in nats squared.

        The division keeps beta from scaling the steps.
        """
        samples = samples_of(batch.cached)
        log_quantile = required(samples.log_quantile_B)
        reward = log_quantile if self.transform == "log" else log_quantile.exp()
        target = (reward - self.scaled_log_partition) / self.beta
        return ((target - samples.log_ratio_B) ** 2).mean()
