"""Unbiased best-of-n curves from one batch of M reference samples.

One batch of M scored samples of a prompt gives best-of-n for *every* n <= M: the average over all C(M, n)
subsets has a closed form, so no further sampling is needed (the estimator of Nakano et al., arXiv 2112.09332,
appendix I). Binomials are computed in log space.
"""

from __future__ import annotations

import math
from math import lgamma

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def log_comb(total: float, chosen: float) -> float:
    """``log C(total, chosen)``; ``-inf`` if the binomial is zero."""
    if chosen < 0 or chosen > total:
        return -np.inf
    return lgamma(total + 1) - lgamma(chosen + 1) - lgamma(total - chosen + 1)


def selection_weights(rewards: Float, num_samples: int) -> Float:
    """Probability that sample i is the best of a random subset of size n, shape ``(M,)``; sums to 1.

    Ties go to the sample with the lower index, as in the service's ``bon``.

    Raises:
        ValueError: n is outside ``1..M``.
    """
    total = len(rewards)
    if not 1 <= num_samples <= total:
        raise ValueError(
            f"n must be between 1 and {total}, the number of samples; got {num_samples}"
        )
    # Rewards ascend, and of equal ones the lower index comes last, so it wins.
    order = np.lexsort((-np.arange(total), rewards))
    log_total = log_comb(total, num_samples)
    weights = np.zeros(total)
    for position, index in enumerate(order):
        weights[index] = np.exp(log_comb(position, num_samples - 1) - log_total)
    return weights


def selection_matrix(total: int) -> Float:
    """The weights of :func:`selection_weights` of every n, shape ``(M, M)``, for rewards in ascending order.

    Row n - 1 has those of best-of-n. One matrix serves all prompts, and all n at once.
    """
    weights = np.zeros((total, total))
    for num_samples in range(1, total + 1):
        log_total = log_comb(total, num_samples)
        for position in range(num_samples - 1, total):
            log_chosen = log_comb(position, num_samples - 1)
            weights[num_samples - 1, position] = math.exp(log_chosen - log_total)
    return weights


def tilted_weights(rewards: Float, num_samples: float) -> Float:
    """Probability that sample i is the best of n whose other n - 1 are drawn anew, shape ``(M,)``; sums to 1.

    It is ``n / M`` times the probability that n - 1 further samples are all below sample i. All orders of the
    M + n - 1 samples are equally likely, so for the k-th smallest of the M that is
    ``C(k + n - 2, n - 1) / C(M + n - 1, n - 1)``, which is E[F^(n-1)] given its rank (derived here, tested by
    enumeration), and which any real n has. Unlike :func:`selection_weights` it needs no M >= n, and with
    M = n it does not put everything on one sample. For a large M both are alike. Ties go to the sample with
    the lower index.

    Raises:
        ValueError: n is below 1, or there are no samples.
    """
    total = len(rewards)
    if num_samples < 1 or not total:
        raise ValueError(
            f"n must be at least 1, with at least one sample; got {num_samples}, {total}"
        )
    order = np.lexsort((-np.arange(total), rewards))
    log_total = log_comb(total + num_samples - 1, num_samples - 1) + math.log(total / num_samples)
    weights = np.zeros(total)
    for position, index in enumerate(order):
        weights[index] = np.exp(log_comb(position + num_samples - 1, num_samples - 1) - log_total)
    return weights


def expected_best(rewards: Float, num_samples: int, values: Float | None = None) -> float:
    """Unbiased estimate of the expected value of the best of n; ``values`` defaults to the rewards.

    With gold rewards as ``values``, it is the gold reward of best-of-n that selects by ``rewards``.
    """
    picked = rewards if values is None else values
    return float(selection_weights(rewards, num_samples) @ picked)


def win_rate_of_best(rewards: Float, num_samples: int, values: Float | None = None) -> float:
    """Unbiased estimate of the probability that best-of-n beats one more reference sample.

    Ties count 1/2. It is the average over all ways to choose n candidates and one opponent without
    replacement, so ``n`` must be below M. Without ties it is exactly ``n / (n+1)``, whatever the rewards are;
    ties lower it. With gold rewards as ``values``, it is the gold win rate of best-of-n that selects by
    ``rewards``; no sample is its own opponent.

    Raises:
        ValueError: n is outside ``1..M-1``.
    """
    total = len(rewards)
    if not 1 <= num_samples < total:
        raise ValueError(
            f"n must be between 1 and {total - 1}, because one of the {total} samples is the opponent; "
            f"got {num_samples}"
        )
    if values is not None:
        return _win_rate_by_other(rewards, num_samples, values)
    _, counts = np.unique(rewards, return_counts=True)
    log_total, remaining = log_comb(total, num_samples), total - num_samples
    win_rate, below = 0.0, 0
    for group in (int(count) for count in counts):
        # The best is in this group of ties if k >= 1 candidates are in it and all others are below it.
        for k in range(max(1, num_samples - below), min(group, num_samples) + 1):
            log_probability = log_comb(group, k) + log_comb(below, num_samples - k) - log_total
            beaten = below - (num_samples - k)
            win_rate += float(np.exp(log_probability)) * (beaten + 0.5 * (group - k)) / remaining
        below += group
    return win_rate


def _win_rate_by_other(rewards: Float, num_samples: int, values: Float) -> float:
    """The win rate by ``values`` of the best of n by ``rewards``; ties of rewards go to the lower index.

    The sample with k samples below it is the best of C(k, n-1) subsets. An opponent above it is in none of
    them; one below it is outside of C(k-1, n-1) of them.
    """
    total = len(rewards)
    ordered = values[np.lexsort((-np.arange(total), rewards))]
    log_pairs = log_comb(total, num_samples) + math.log(total - num_samples)
    win_rate = 0.0
    for k in range(num_samples - 1, total):
        wins = (np.sign(ordered[k] - ordered) + 1) / 2
        below, above = wins[:k].sum(), wins[k + 1 :].sum()
        win_rate += above * math.exp(log_comb(k, num_samples - 1) - log_pairs)
        win_rate += below * math.exp(log_comb(k - 1, num_samples - 1) - log_pairs)
    return float(win_rate)


def pairwise_win_rate(challengers: Float, references: Float) -> float:
    """Share of all (challenger, reference) pairs that the challenger wins; ties count 1/2."""
    ordered = np.sort(references)
    below = np.searchsorted(ordered, challengers, side="left")
    up_to = np.searchsorted(ordered, challengers, side="right")
    return float(np.mean((below + up_to) / 2) / len(ordered))
