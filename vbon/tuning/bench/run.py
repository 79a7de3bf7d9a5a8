"""Runs one sampler on one problem: the regret of the recommended point after each evaluation."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from vbon.maths.seeds import seed_of
from vbon.tuning.bench.problem import Measurement, Problem
from vbon.tuning.registry import make_sampler

Float = NDArray[np.float64]

START = "gp-ts"  # whose first trials, a Latin hypercube, begin every study


def regrets(problem: Problem, sampler: str, seed: int, trials: int, start: int) -> Float:
    """The regret after each evaluation, shape (trials,).

    The first ``start`` points and the noise of each evaluation depend on the problem and the seed only, so
    that samplers are compared in pairs. The recommended point is the one with the best measured value among
    those that met the constraints; its regret is that of its exact value.
    """
    hashed = seed_of(f"{problem.name}/{seed}")
    study = optuna.create_study(sampler=make_sampler(START, hashed, n_startup_trials=start))
    exact: list[Measurement] = []

    def objective(trial: optuna.Trial) -> float:
        measured = problem.measure(problem.ask(trial))
        exact.append(measured)
        for name, value in measured.constraints.items():
            trial.set_constraint(name, value)
        noise = np.random.default_rng(seed_of(f"{hashed}/noise/{trial.number}")).standard_normal()
        return measured.value + problem.noise * noise

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.optimize(objective, n_trials=start)
        study.sampler = make_sampler(sampler, hashed)
        study.optimize(objective, n_trials=trials - start)
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return _curve(problem, exact, [trial.value or 0.0 for trial in done])


def _curve(problem: Problem, exact: list[Measurement], measured: list[float]) -> Float:
    found, best, lowest = [], problem.unmet, np.inf
    for point, value in zip(exact, measured, strict=True):
        if point.feasible and value < lowest:
            lowest, best = value, max(point.value - problem.best, 0.0)
        found.append(best)
    return np.array(found)
