r"""Sequential tests of the mean of bounded variables that may be looked at after every observation.

The variables are in [0, b], where b is 1 unless said otherwise.

Both are games of bets (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
2023, arXiv 2010.09686). Against the hypothesis that the mean is at most m, a gambler's wealth is

    K_t = prod_{i<=t} (1 + lambda (X_i - m)),    0 <= lambda < 1/m

As long as E[X_i | X_1..X_{i-1}] <= m, wealth cannot grow on average, so K is an *e-process*: by Ville's
inequality, P(K_t >= 1/alpha for any t) <= alpha. Variables may depend on each other and change over time;
only their conditional means count. Against a mean of at least m, b - X plays the same game against b - m. So
a larger b makes the bets on a low mean smaller, and changes nothing for those on a high one.

The best lambda is unknown, so the wealth is divided equally among several fixed ones (the paper's diversified
Kelly betting); an average of e-processes is an e-process too. We chose this over the paper's adaptive bets
(aGRAPA), because for win rates near 1 it needs fewer observations to notice that a mean is too low, needs far
fewer if the variables are often 0, and does not depend on the order of the observations.

:class:`FallDetector` watches for a change at an unknown time (Shin, Ramdas and Rinaldo, "E-detectors: a
nonparametric framework for sequential change detection", 2022, arXiv 2203.03532).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Side = Literal["above", "below"]

# The bets, as shares of the largest that is allowed. At 1, one observation could take all of the wealth.
FRACTIONS = (0.02, 0.06, 0.2, 0.5, 0.95)
_NOTHING = (0.0,) * len(FRACTIONS)


@dataclass(frozen=True, slots=True)
class MeanEvidence:
    """Evidence that the mean of [0, most] variables is on one side of a threshold; an e-process.

    It is immutable, and its fields are plain numbers, so that it can be kept as JSON.

    Attributes:
        threshold: m, between 0 and ``most``, both excluded.
        side: ``above``: evidence against a mean of at most m; ``below``: against a mean of at least m.
        most: the largest value that an observation can have.
        count: number of observations.
        log_wealths: logarithm of the wealth of each of :data:`FRACTIONS`.
        log_peak: logarithm of the largest e-value so far, at least 0.
    """

    threshold: float
    side: Side
    count: int = 0
    log_wealths: tuple[float, ...] = _NOTHING
    log_peak: float = 0.0
    most: float = 1.0

    def __post_init__(self) -> None:
        _check(self.threshold, self.most, self.log_wealths)

    def observe(self, value: float) -> MeanEvidence:
        """The evidence with one more observation.

        Raises:
            ValueError: the value is outside [0, most].
        """
        gains = _log_gains(value, self.threshold, self.most, self.side)
        wealths = tuple(w + gain for w, gain in zip(self.log_wealths, gains, strict=True))
        return replace(
            self,
            count=self.count + 1,
            log_wealths=wealths,
            log_peak=max(self.log_peak, _log_mean(wealths)),
        )

    @property
    def log_e(self) -> float:
        """Logarithm of the present e-value."""
        return _log_mean(self.log_wealths)

    def rejects(self, alpha: float) -> bool:
        """True once the e-value has reached ``1/alpha``.

        If the mean is not on this side, the probability that this ever happens is at most ``alpha``.
        """
        return self.log_peak >= -math.log(alpha)


@dataclass(frozen=True, slots=True)
class FallDetector:
    r"""Detector of a fall of the mean of [0, most] variables below a threshold, at an unknown time.

    The sum over all j <= t of e-processes that begin at time j (the paper's Shiryaev-Roberts e-detector):

        M_t = L_t (M_{t-1} + 1),    L_t = 1 - lambda (X_t - m),    M_0 = 0

    averaged over several lambda. As long as the conditional means are at least m, E[M_T] <= E[T] for every
    stopping time T, so the mean number of observations until ``M >= run_length`` is at least ``run_length``.
    After a long good time M is still of the order of 1, so a fall is noticed as quickly as at the beginning.

    Attributes:
        threshold: m, between 0 and ``most``, both excluded.
        count: number of observations.
        log_sums: ``log(M + 1)`` of each of :data:`FRACTIONS`.
        most: the largest value that an observation can have.
    """

    threshold: float
    count: int = 0
    log_sums: tuple[float, ...] = _NOTHING
    most: float = 1.0

    def __post_init__(self) -> None:
        _check(self.threshold, self.most, self.log_sums)

    def observe(self, value: float) -> FallDetector:
        """The detector after one more observation.

        Raises:
            ValueError: the value is outside [0, most].
        """
        gains = _log_gains(value, self.threshold, self.most, "below")
        sums = tuple(_log_plus_one(s + gain) for s, gain in zip(self.log_sums, gains, strict=True))
        return replace(self, count=self.count + 1, log_sums=sums)

    @property
    def log_e(self) -> float:
        """Logarithm of M, or minus infinity before the first observation."""
        mean = _log_mean(self.log_sums)  # of M + 1
        return mean + math.log(-math.expm1(-mean)) if mean > 0 else -math.inf

    def alarms(self, run_length: float) -> bool:
        """True while M is at least ``run_length``, the mean number of observations between false alarms."""
        return self.log_e >= math.log(run_length)


def _check(threshold: float, most: float, values: tuple[float, ...]) -> None:
    if not 0 < threshold < most:
        raise ValueError(
            f"the threshold must be between 0 and {most:g}, both excluded; got {threshold}"
        )
    if len(values) != len(FRACTIONS):
        raise ValueError(f"there are {len(FRACTIONS)} bets; got the state of {len(values)}")


def _log_gains(value: float, threshold: float, most: float, side: Side) -> list[float]:
    """Logarithms of the factors by which one observation multiplies the wealth of each bet."""
    if not 0 <= value <= most:  # also refuses NaN
        raise ValueError(f"observations must be between 0 and {most:g}; got {value}")
    if side == "below":
        value, threshold = most - value, most - threshold
    return [math.log1p(fraction * (value / threshold - 1)) for fraction in FRACTIONS]


def _log_mean(logs: tuple[float, ...]) -> float:
    """``log(mean(exp(logs)))`` without overflow."""
    most = max(logs)
    return most + math.log(math.fsum(math.exp(log - most) for log in logs) / len(logs))


def _log_plus_one(log: float) -> float:
    """``log(exp(log) + 1)`` without overflow."""
    return max(log, 0.0) + math.log1p(math.exp(-abs(log)))
