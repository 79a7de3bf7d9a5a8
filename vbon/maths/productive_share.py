"""The equivalent n of a tuned policy, and the productive share of its KL.

Best-of-n has nearly the highest win rate of all policies at its KL. So a policy that wins w of its
comparisons is worth best-of-n at ``n = w / (1 - w)``, and could have reached w with that n's KL. The
productive share is this KL divided by the KL that the policy has. It is 0 for a policy that moved for
nothing, and about 1 at most. Both assume that rewards are not tied; ties make them smaller.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vbon.maths.distribution import kl_upper_bound
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import RESAMPLES, bootstrap_mean

LARGEST_N = 1_000_000.0


def equivalent_n(win_rate: float) -> float:
    """The real n whose best-of-n has this win rate; below 1 if the policy loses, 1,000,000 at most."""
    return LARGEST_N if win_rate >= 1 else min(LARGEST_N, win_rate / (1 - win_rate))


def productive_share(win_rate: float, kl_nats: float) -> float:
    """KL of best-of-n at the win rate, divided by ``kl_nats``; 0 if the policy wins half or never moved."""
    if win_rate <= 0.5 or kl_nats <= 0:
        return 0.0
    return kl_upper_bound(equivalent_n(win_rate)) / kl_nats


def equivalent_ns(win_rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The equivalent n of every win rate; same shape."""
    return np.minimum(LARGEST_N, win_rates / np.maximum(1 - win_rates, 1e-12))


def productive_shares(
    win_rates: NDArray[np.float64], kl_nats: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The productive share of every pair of win rate and KL; same shape."""
    n = equivalent_ns(np.maximum(win_rates, 0.5))
    needed = np.log(n) - (n - 1) / n
    return np.divide(needed, kl_nats, out=np.zeros_like(needed), where=kl_nats > 0)


def proven_share(win_rate: MeanInterval, kl_nats: float) -> float:
    """The productive share, or 0 if the interval of the win rate includes one half.

    Near the reference policy, the share would otherwise divide the noise of one figure by that of the other.
    """
    return productive_share(win_rate.mean, kl_nats) if win_rate.low > 0.5 else 0.0


def equivalent_n_interval(win_rate: MeanInterval) -> MeanInterval:
    """The equivalent n at the win rate and at both ends of its interval."""
    mean, low, high = map(equivalent_n, (win_rate.mean, win_rate.low, win_rate.high))
    return MeanInterval(mean, low, high, win_rate.count)


def productive_share_interval(win_rates: ArrayLike, kl_nats: ArrayLike) -> MeanInterval:
    """The productive share of the means over prompts, with its 95% bootstrap interval.

    Prompts are resampled with both of their figures. If the win rate may be one half, the share is 0 and its
    interval ends at 1, because nothing more is possible.

    Args:
        win_rates: the policy's win rate on each prompt.
        kl_nats: its KL on each prompt, in the same order.
    """
    wins, kl = np.asarray(win_rates, dtype=np.float64), np.asarray(kl_nats, dtype=np.float64)
    win_rate, mean_kl = bootstrap_mean(wins), float(kl.mean())
    picks = np.random.default_rng(0).integers(wins.size, size=(RESAMPLES, wins.size))
    shares = productive_shares(wins[picks].mean(1), kl[picks].mean(1))
    low, high = (float(value) for value in np.quantile(shares, [0.025, 0.975]))
    if win_rate.low <= 0.5:
        return MeanInterval(0.0, 0.0, min(1.0, high), wins.size)
    return MeanInterval(productive_share(win_rate.mean, mean_kl), low, high, wins.size)
