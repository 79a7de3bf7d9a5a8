r"""The best-of-N distribution and its distance from the reference policy.

For a prompt, ``p`` is the reference policy and ``r`` the reward; under ``p``, ``F(y) = P[r(y') < r(y)]``
(strict) and ``F_le(y) = P[r(y') <= r(y)]``. If no two outcomes have the same reward, the probability that
best-of-N returns ``y`` has three equal forms (Variational Best-of-N, arXiv 2407.06057, section 3; the tests
check the equality by enumeration):

    (a)  F_le^N - F^N
    (b)  sum_{i=1..N} C(N, i) F^(N-i) p^i
    (c)  p F_le^(N-1) sum_{i=1..N} (F / F_le)^(i-1)

Form (a) needs exact probabilities and suits small examples; form (b) in log space suits sequences, where
``p`` is about e^-100. With ties, (a) summed over a group of tied outcomes is exact for the group, but (b) and
(c) are not exact for single outcomes, so callers must define how ties are broken.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def strict_cdf(probabilities: Float, rewards: Float) -> Float:
    """``F(y) = P[r(y') < r(y)]`` for every outcome y of a finite distribution, shape ``(V,)``."""
    return np.array([probabilities[rewards < reward].sum() for reward in rewards])


def bon_pmf(probabilities: Float, rewards: Float, num_samples: int) -> Float:
    """Probability that best-of-N returns each outcome, by form (a), shape ``(V,)``.

    Tied outcomes share the mass of their group in proportion to ``p``, because the first of tied candidates
    is returned and candidates are exchangeable.
    """
    below = strict_cdf(probabilities, rewards)
    group = np.array([probabilities[rewards == reward].sum() for reward in rewards])
    group_mass = np.clip(below + group, 0, 1) ** num_samples - np.clip(below, 0, 1) ** num_samples
    return group_mass * probabilities / group


def bon_pmf_binomial(probabilities: Float, rewards: Float, num_samples: int) -> Float:
    """The same probability by form (b); equal to :func:`bon_pmf` without ties."""
    below = strict_cdf(probabilities, rewards)
    terms = [
        math.comb(num_samples, i) * below ** (num_samples - i) * probabilities**i
        for i in range(1, num_samples + 1)
    ]
    return np.sum(terms, axis=0)


def bon_pmf_geometric(probabilities: Float, rewards: Float, num_samples: int) -> Float:
    """The same probability by form (c); equal to :func:`bon_pmf` without ties."""
    below = strict_cdf(probabilities, rewards)
    up_to = below + probabilities
    ratio = below / up_to
    series = np.sum([ratio ** (i - 1) for i in range(1, num_samples + 1)], axis=0)
    return probabilities * up_to ** (num_samples - 1) * series


def kl_upper_bound(num_samples: float) -> float:
    """``log N - (N-1)/N`` nats, an upper bound on KL(BoN || p) and not its value; N may be between integers.

    The bound is tight if ``N^2 max p`` is far below 1, and loose for short or peaked outputs.
    """
    return math.log(num_samples) - (num_samples - 1) / num_samples


def kl_estimate(probability_selected: float, num_samples: int) -> float:
    """Closer estimate of KL(BoN || p) from ``eps``, the probability of the selected answer under ``p``.

    ``(1-eps)^n [log n + (n-1) log(1-eps) - (n-1)/n] + [1-(1-eps)^n] log([1-(1-eps)^n]/eps)``
    (Beirami et al., arXiv 2401.01879). It tends to :func:`kl_upper_bound` as eps goes to 0.

    Raises:
        ValueError: the probability is outside [0, 1].
    """
    eps, n = probability_selected, num_samples
    if not 0.0 <= eps <= 1.0:
        raise ValueError(f"probability_selected must be between 0 and 1; got {eps}")
    if eps < 1e-12:
        return kl_upper_bound(n)
    if eps == 1.0:
        return 0.0
    none_selected = math.exp(n * math.log1p(-eps))
    some_selected = -math.expm1(n * math.log1p(-eps))
    first = none_selected * (math.log(n) + (n - 1) * math.log1p(-eps) - (n - 1) / n)
    return first + some_selected * math.log(some_selected / eps)


def max_win_rate(num_samples: int) -> float:
    """``N / (N+1)``, the highest win rate of best-of-N against one reference sample; ties count 1/2."""
    return num_samples / (num_samples + 1)
