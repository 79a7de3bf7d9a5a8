"""Runs one sampler on one problem: the regret of the recommended point after each evaluation."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray

from vbon.maths.seeds import seed_of
from vbon.tuning.bench.problem import Instance, Measurement, Problem
from vbon.tuning.registry import make_sampler, startup_options

Float = NDArray[np.float64]

START = "gp-ts"  # whose first trials, a Latin hypercube, begin every study


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """One finished study.

    Attributes:
        regrets: the regret after each evaluation, shape (trials,).
        seconds: processor time per suggestion, of those after the start.
    """

    regrets: Float
    seconds: float


def run_study(problem: Problem, sampler: str, seed: int, trials: int, start: int) -> StudyRecord:
    """Minimise the problem's function of a seed.

    The first ``start`` points, the function and the noise of each evaluation depend on the problem and the
    seed only, so that samplers are compared in pairs. From the next point on, each sampler uses its model of
    the outcomes, whatever number of points it would wait for by itself. The recommended point is the one with
    the best measured value among those that met the constraints; its regret is that of its exact value.
    """
    hashed = seed_of(f"{problem.name}/{seed}")
    instance = problem.instance(seed)
    exact: list[Measurement] = []
    measured: list[float] = []
    spent = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=make_sampler(START, hashed, n_startup_trials=start))
        for number in range(trials):
            if number == start:
                options = startup_options(sampler, start)
                study.sampler = make_sampler(sampler, hashed, **options)
            begun = time.process_time()
            trial = study.ask()
            params = problem.ask(trial)
            if number >= start:
                spent += time.process_time() - begun
            found = instance.measure(params)
            for name, value in found.constraints.items():
                trial.set_constraint(name, value)
            noise = np.random.default_rng(seed_of(f"{hashed}/noise/{number}")).standard_normal()
            exact.append(found)
            measured.append(found.value + problem.noise * noise)
            study.tell(trial, measured[-1])
    return StudyRecord(_curve(problem, instance, exact, measured), spent / (trials - start))


def _curve(
    problem: Problem, instance: Instance, exact: list[Measurement], measured: list[float]
) -> Float:
    found, best, lowest = [], problem.unmet, np.inf
    for point, value in zip(exact, measured, strict=True):
        if point.feasible and value < lowest:
            lowest, best = value, max(point.value - instance.best, 0.0)
        found.append(best)
    return np.array(found)
