r"""Variational Best-of-N (arXiv 2407.06057): minimise KL(q || p_bon).

With F the strict reward cdf under the reference p, equation (b) of the BoN distribution gives

    -KL(q || p_bon) = E_q[log sum_{i=1..N} C(N, i) F^(N-i) p^i] + H(q)
                    = E_q[log sum_{i=1..N} C(N, i) F^(N-i) p^(i-1)] - KL(q || p)        (exact)
                   >= log N + (N-1) E_q[log F] - KL(q || p)                             (keep i = 1)

Both are KL-regularised RL. They are divided by N - 1 here, which changes no optimum and keeps the
reward's scale independent of N; so beta = 1/(N-1) in both (the official code's 1/N reward beside
a beta of 1/(N-1) optimises something else). Binomials stay in log space: float(comb) overflows past
N of about 1030. F is estimated from M cached reference rewards; ties share the strict rank.
"""

from __future__ import annotations

import math

import torch

from bestofn.curves import log_comb
from bestofn.errors import InvalidInputError
from training.objectives.protocol import ScoredBatch


class VbonLowerBound:
    """The i = 1 lower bound, ``log F - KL / (N-1)``: the paper's simplified objective."""

    def __init__(self, num_samples: int) -> None:
        if num_samples < 2:
            raise InvalidInputError(
                f"N must be at least 2, got {num_samples}: best-of-1 is the reference policy itself",
                field="num_samples",
            )
        self.num_samples = num_samples

    @property
    def kl_coefficient(self) -> float:
        """``1 / (N-1)``."""
        return 1.0 / (self.num_samples - 1)

    def sequence_reward(self, batch: ScoredBatch) -> torch.Tensor:
        """``log F^``."""
        return batch.log_cdf_B


class VbonExact(VbonLowerBound):
    """The exact objective: every i. Differs from the bound where N p(y) is not small."""

    def sequence_reward(self, batch: ScoredBatch) -> torch.Tensor:
        """``log(sum_i C(N,i) F^(N-i) p^(i-1)) / (N-1)``, by log-sum-exp."""
        return exact_log_weight(batch.log_cdf_B, batch.ref_logprob_B, self.num_samples) / (
            self.num_samples - 1
        )


def exact_log_weight(
    log_cdf_B: torch.Tensor,
    ref_logprob_B: torch.Tensor,
    num_samples: int,
) -> torch.Tensor:
    """``log(p_bon(y) / p(y)) = log sum_i C(N,i) F^(N-i) p^(i-1)`` in nats, shape ``(B,)``."""
    i = torch.arange(1, num_samples + 1, dtype=torch.float64)
    log_binomial = torch.tensor([log_comb(num_samples, int(k)) for k in i], dtype=torch.float64)
    log_cdf = log_cdf_B.double().cpu()[:, None]
    # 0 * -inf where F = 0 and i = N: that term is p^(N-1), F to the power of nothing.
    powers = torch.where(i == num_samples, torch.zeros(()), (num_samples - i) * log_cdf)
    terms = log_binomial + powers + (i - 1) * ref_logprob_B.double().cpu()[:, None]
    total = torch.logsumexp(terms, dim=1)
    assert not math.isnan(float(total.sum())), "log F and log p must not be NaN"
    return total.to(log_cdf_B)
