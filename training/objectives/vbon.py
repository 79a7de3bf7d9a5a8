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
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from training.objectives.protocol import Samples, required
from training.objectives.regularised_rl import RegularisedRL
from training.objectives.settings import BonSettings
from vbon.maths.curves import log_comb

if TYPE_CHECKING:
    import torch


class Vbon(BonSettings, RegularisedRL):
    """Fine-tune the reference policy to answer once what best-of-N answers with N samples.

    Minimises KL(q || p_bon) (arXiv 2407.06057) with on-policy samples.
    """

    title: ClassVar[str] = "vBoN"
    source: ClassVar[str] = "Variational Best-of-N Alignment, arXiv 2407.06057"
    strict_order: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "warm_start_steps": 40,
        "warm_start_learning_rate": 8e-4,
        "steps": 30,
    }

    bound: Literal["lower", "exact", "l1"] = Field(
        "lower",
        description="lower: the bound by i = 1; exact: the sum over all i; l1: the paper's L1",
    )

    @property
    def kl_coefficient(self) -> float:
        """Weight of the KL, ``1 / (N-1)``."""
        return 1.0 / (self.num_samples - 1)

    def peak_learning_rate(self) -> float:
        """Proportional to the square of the KL's weight, at most 3e-4.

        The weaker the pull of the KL, the smaller the steps must be (docs/log.md).
        """
        return min(3e-4, 1.8e-3 * self.kl_coefficient**2)

    def sequence_reward(self, samples: Samples) -> torch.Tensor:
        """``log F^``, the L1 reward or the exact log-weight, each divided by N - 1."""
        n = self.num_samples
        if self.bound == "lower":
            return samples.log_cdf_B
        if self.bound == "l1":
            return (n * samples.log_cdf_B + (n + 2) * required(samples.ref_logprob_B)) / 2
        return exact_log_weight(samples.log_cdf_B, required(samples.ref_logprob_B), n) / (n - 1)


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
