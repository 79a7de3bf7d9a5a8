"""Finished trials as data for models: one outcome for the objective, one for each constraint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from vbon.tuning.encoding import Space

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Measured values of one quantity, standardised.

    Attributes:
        name: ``objective``, or the key of a constraint.
        features: feature rows, shape (n, width).
        values: mean 0 and standard deviation 1, larger is better, shape (n,).
        limit: the least value that meets the constraint; minus infinity for the objective.
    """

    name: str
    features: Float
    values: Float
    limit: float


def standardised(values: Float) -> tuple[Float, float, float]:
    """Values less their mean and divided by their standard deviation, with both; equal values become 0.

    They are rounded to 10 digits, so that the same data in other units lead to the same choices: training
    of a network would make a difference of rounding a large one.
    """
    mean, sd = float(values.mean()), float(values.std())
    if sd <= 1e-12 * max(1.0, abs(mean)):
        sd = 1.0
    return np.round((values - mean) / sd, 10), mean, sd


def objective_values(trials: Sequence[FrozenTrial], direction: StudyDirection) -> Float:
    """The trials' values with larger ones better; infinite ones are the best or worst finite value."""
    sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0
    return finite(np.array([sign * (trial.value or 0.0) for trial in trials]))


def finite(values: Float) -> Float:
    """Values with infinite ones replaced by the largest or smallest finite one."""
    known = values[np.isfinite(values)]
    if not len(known):
        return np.zeros_like(values)
    return np.clip(values, known.min(), known.max())


def outcomes_of(
    trials: Sequence[FrozenTrial], direction: StudyDirection, space: Space
) -> list[Outcome]:
    """The objective and the constraints of complete trials, the objective first.

    A constraint is met where Optuna's value is at most 0. Its model uses the trials that have a value of it.
    """
    features = space.features(np.array([space.unit_row(trial.params) for trial in trials]))
    values, _, _ = standardised(objective_values(trials, direction))
    found = [Outcome("objective", features, values, -np.inf)]
    keys = {key: None for trial in trials for key in trial.constraints}
    for key in keys:
        rows = [i for i, trial in enumerate(trials) if key in trial.constraints]
        measured = finite(np.array([-trials[i].constraints[key] for i in rows]))
        values, mean, sd = standardised(measured)
        found.append(Outcome(key, features[rows], values, -mean / sd))
    return found
