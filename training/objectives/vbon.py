r"""Variational Best-of-N (arXiv 2407.06057): minimise KL(q || p_bon).

Let F be the strict cdf of the reward under the reference p. Equation (b) of the BoN distribution gives

    -KL(q || p_bon) = E_q[log sum_{i=1..N} C(N, i) F^(N-i) p^i] + H(q)
                    = E_q[log sum_{i=1..N} C(N, i) F^(N-i) p^(i-1)] - KL(q || p)        (exact)
                   >= log N + (N-1) E_q[log F] - KL(q || p)                             (lower)
                   >= gamma E_q[log F] - alpha H(q) - beta KL(q || p)                   (l1)

``lower`` keeps only i = 1. ``l1`` is the paper's bound, with gamma = N(N-1)/2, alpha = (N+2)(N-1)/2 and
beta = N(N+1)/2. As beta - alpha = 1, -alpha H(q) - beta KL = (beta - 1) E_q[log p] - KL(q || p) (derived
here; checked by enumeration). So ``l1`` is KL-regularised RL too, with log p in the reward: it pays (N+2)/2
nats for every nat of likelihood, and collapses onto likely texts.

All three are divided by N - 1 here, which changes no optimum and makes the scale of the reward independent
of N. So the weight of the KL is 1/(N-1) in all of them. (The official code has a reward of 1/N with a beta
of 1/(N-1), which optimises something else.) Binomials are computed in log space, because float(comb)
overflows for N above about 1030. F is estimated from M cached reference rewards; ties share the strict rank.

The optimum is known with its normaliser, so the residual of a sample

    A(y) = log p_bon(y)/p(y) - log q(y)/p(y),    log p_bon/p = log N + (N-1) log F   (lower)

is 0 for every y once q is p_bon. Two parts of the loss use this (derived here, tested by enumeration):

- The policy's own samples get the gradient of KL(q || p_bon) with the sampled log-ratio and leave-one-out.
  Its variance is that of A, so it vanishes at the optimum; with the exact per-token KL it does not.
- Cached samples of p get the squared residual A^2/2, with weight ``cached_weight``. They are chosen tilted
  towards p_bon (:func:`tilted_weights`), so these are the texts that q must learn, and the loss needs no
  importance weights: it is 0 at q = p_bon for samples of any distribution. Imitation (bon-sft) has a variance
  of 1 there. Bests of N among the M cached samples would come from p_bon exactly. But with M = N they are one
  sample of each prompt, whose rank, and so log F^, is the same for every prompt and says nothing about F. The
  tilted choice has several, and log F^ correlates with log F (by .70 at M = N = 16, by .97 at M = 256).

With ``aim``, N is a real number in all of this: F is uniform under p, so N F^(N-1) has a mean of 1 for any
N >= 1, and p N F^(N-1) is a distribution. Only the exact sum needs a whole N.

A sample whose log p_bon/p is below ``-floor_nats`` is treated as one at the floor. Such texts have at most
e^-floor of p's probability in the target, but in a batch they dominate the variance: (N-1) log F has a
standard deviation of N-1 nats under p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, FiniteFloat, model_validator

from training.objectives.protocol import (
    CachedChoice,
    KlEstimator,
    Samples,
    SamplesNeeded,
    StepBatch,
    required,
    samples_of,
)
from training.objectives.regularised_rl import RegularisedRL
from training.objectives.settings import BonSettings
from vbon.config import NoneWord
from vbon.maths.curves import log_comb

if TYPE_CHECKING:
    import torch


class Vbon(BonSettings, RegularisedRL):
    """Fine-tune the reference policy to answer once what best-of-N answers with N samples.

    Minimises KL(q || p_bon) (arXiv 2407.06057) with on-policy samples, and with cached ones.
    """

    title: ClassVar[str] = "vBoN"
    source: ClassVar[str] = "Variational Best-of-N Alignment, arXiv 2407.06057"
    strict_order: ClassVar[bool] = True
    # More small steps serve better than few large ones (docs/log.md).
    defaults: ClassVar[Mapping[str, Any]] = {"steps": 300, "prompts_per_step": 8}

    bound: Literal["lower", "exact", "l1"] = Field(
        "lower",
        description="lower: the bound by i = 1; exact: the sum over all i; l1: the paper's L1",
    )

    kl_estimator: KlEstimator = Field(
        "sampled",
        description="sampled: per response, without noise at the optimum; exact: per token, with KL-to-go",
    )
    cached_weight: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the loss that regresses log q/p of good cached samples onto its optimum; 0: "
        "the policy's own samples only; default: 0.5, or 0 with the bound l1, whose optimum is unknown",
    )
    floor_nats: Annotated[float | None, NoneWord] = Field(
        6.0,
        gt=0,
        description="log p_bon/p below minus this counts as minus this; `none` for no floor",
    )

    # Left out of records where it is not given, so that outputs made before this setting existed still count.
    aim: Annotated[FiniteFloat | None, NoneWord] = Field(
        None,
        exclude_if=lambda aim: aim is None,
        description="N of the target, which may be a fraction and is at least --num-samples: a little more "
        "makes up for the KL that a run does not reach; default: --num-samples",
    )

    @model_validator(mode="after")
    def _target_that_is_known(self) -> Vbon:
        if self.bound == "l1" and self.cached_weight:
            raise ValueError(
                f"cached_weight is {self.cached_weight:g}, but the optimum of the bound l1 is not known, so "
                "cached samples cannot be regressed onto it; leave it out, or choose another bound"
            )
        return self

    @model_validator(mode="after")
    def _aim_that_fits(self) -> Vbon:
        if self.aim is None:
            return self
        if self.aim < self.num_samples:
            raise ValueError(
                f"aim is {self.aim:g}, which is less than num_samples, {self.num_samples}; lower num_samples "
                "instead"
            )
        if self.bound == "exact" and self.aim != int(self.aim):
            raise ValueError(
                f"aim is {self.aim:g}, but the bound exact is a sum of N terms; give a whole number, or "
                "choose the bound lower"
            )
        return self

    @property
    def target(self) -> float:
        """N of the target: ``aim`` if it is given."""
        return self.num_samples if self.aim is None else self.aim

    @property
    def cached_share(self) -> float:
        """The weight of the cached samples in the loss."""
        if self.cached_weight is None:
            return 0.0 if self.bound == "l1" else 0.5
        return self.cached_weight

    @property
    def samples_needed(self) -> SamplesNeeded:
        """Samples of the policy, and tilted ones of the cache with ``log p`` if they have a weight."""
        cached = CachedChoice("tilted", self.target, ref_logprob=True)
        return SamplesNeeded(policy=True, cached=cached if self.cached_share else None)

    @property
    def kl_coefficient(self) -> float:
        """Weight of the KL, ``1 / (N-1)``."""
        return 1.0 / (self.target - 1)

    def peak_learning_rate(self) -> float:
        """Proportional to log N: the farther best-of-N is, the more noise its KL can bear (docs/log.md)."""
        return 2e-4 * math.log(self.target)

    def sequence_reward(self, samples: Samples) -> torch.Tensor:
        """``log F^``, the L1 reward or the exact log-weight, each divided by N - 1."""
        n = self.target
        if self.bound == "l1":
            return (n * samples.log_cdf_B + (n + 2) * required(samples.ref_logprob_B)) / 2
        if self.bound == "exact":
            return self.log_weight(samples) / (n - 1)
        if self.floor_nats is None:
            return samples.log_cdf_B
        return samples.log_cdf_B.clamp(min=(-self.floor_nats - math.log(n)) / (n - 1))

    def log_weight(self, samples: Samples) -> torch.Tensor:
        """``log p_bon(y)/p(y)`` in nats, by the bound ``lower`` or ``exact``, at least the floor."""
        n = self.target
        if self.bound == "exact":
            weight = exact_log_weight(samples.log_cdf_B, required(samples.ref_logprob_B), int(n))
        else:
            weight = math.log(n) + (n - 1) * samples.log_cdf_B
        return weight if self.floor_nats is None else weight.clamp(min=-self.floor_nats)

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """The on-policy loss, and the squared residual of the cached samples, weighted."""
        own = super().loss(batch)
        weight = self.cached_share
        if not weight:
            return own
        cached = samples_of(batch.cached)
        residual = self.log_weight(cached) - cached.log_ratio_B
        regression = self.kl_coefficient * (residual**2).mean() / 2
        return (1 - weight) * own + weight * regression


def exact_log_weight(
    log_cdf_B: torch.Tensor,
    ref_logprob_B: torch.Tensor,
    num_samples: int,
) -> torch.Tensor:
    """``log(p_bon(y) / p(y)) = log sum_i C(N,i) F^(N-i) p^(i-1)`` in nats, shape ``(B,)``."""
    import torch

    i = torch.arange(1, num_samples + 1, dtype=torch.float64)
    log_binomial = torch.tensor([log_comb(num_samples, int(k)) for k in i], dtype=torch.float64)
    log_cdf = log_cdf_B.double().cpu()[:, None]
    # For i = N the power of F is 0, and 0 * log F would be NaN if F = 0.
    powers = torch.where(i == num_samples, torch.zeros(()), (num_samples - i) * log_cdf)
    terms = log_binomial + powers + (i - 1) * ref_logprob_B.double().cpu()[:, None]
    total = torch.logsumexp(terms, dim=1)
    assert not math.isnan(float(total.sum())), "log F and log p must not be NaN"
    return total.to(log_cdf_B)
