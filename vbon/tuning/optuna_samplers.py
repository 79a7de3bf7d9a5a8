"""Optuna's own samplers under the names of the registry, for comparison and for use."""

from __future__ import annotations

from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler


def gp(seed: int | None = None, n_startup_trials: int = 10) -> BaseSampler:
    """Optuna's Gaussian process; it draws parameters that only some trials have at random."""
    return GPSampler(
        seed=_short(seed), n_startup_trials=n_startup_trials, warn_independent_sampling=False
    )


def tpe(seed: int | None = None, n_startup_trials: int = 10) -> BaseSampler:
    """Optuna's tree-structured Parzen estimator, one parameter at a time, as is its default."""
    return TPESampler(seed=_short(seed), n_startup_trials=n_startup_trials)


def random(seed: int | None = None) -> BaseSampler:
    """Optuna's random sampler."""
    return RandomSampler(seed=_short(seed))


def _short(seed: int | None) -> int | None:
    """The seed within the 32 bits that Optuna's samplers take."""
    return None if seed is None else seed % 2**32
