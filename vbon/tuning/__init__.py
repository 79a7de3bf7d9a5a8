"""Optimisers for any Optuna study: neural and Gaussian-process Thompson sampling (docs/tuning.md).

::

    study = optuna.create_study(sampler=make_sampler("hp-gp-ts", seed=0))

Importing this package imports neither Optuna nor torch; making a sampler does.
"""

from vbon.tuning.registry import DEFAULT_SAMPLER, SAMPLERS, make_sampler

__all__ = ["DEFAULT_SAMPLER", "SAMPLERS", "make_sampler"]
