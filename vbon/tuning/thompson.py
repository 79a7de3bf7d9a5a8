"""The common part of the samplers: from a study's trials to the best point of sampled functions.

Everything is derived from the trials of the study, so a study in Optuna's storage is resumed by opening it
again, and workers need nothing but the storage. The randomness of a trial is a hash of (seed, trial number,
outcome). Trials that are asked for before others are told, in a batch or by several workers, are therefore
independent draws from the same posterior: a batch of Thompson sampling.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vbon.errors import InvalidInputError
from vbon.maths.seeds import seed_of
from vbon.tuning.encoding import Space, axis_of
from vbon.tuning.maximise import SEARCH_SIZE, Goal, Sampled, SearchSize, best_point
from vbon.tuning.outcomes import Outcome, objective_values, outcomes_of

_ANCHORS = 5  # best trials, near which points are tried too
_CONSTRAINTS = "constraints"  # Optuna's key for the values of constraints_func


class ThompsonSampler(BaseSampler, ABC):
    """A sampler that draws a function for each outcome and proposes its best point.

    Constraints are those of :meth:`optuna.trial.Trial.set_constraint`, or of ``constraints_func``: met if at
    most 0. Among points that meet all sampled constraints the best sampled objective is proposed; if there
    are none, the least total violation. Failed and pruned trials are ignored.

    Args:
        seed: the same seed, trials and trial number give the same parameters; None draws one.
        n_startup_trials: complete trials before the model is used. Until then, parameters come from Latin
            hypercubes of this many trials.
        constraints_func: Optuna's older way to give constraints: their values for a trial.
        search: the effort of the search for the best point.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        n_startup_trials: int = 10,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
        search: SearchSize = SEARCH_SIZE,
    ) -> None:
        if n_startup_trials < 1:
            raise InvalidInputError(
                f"n_startup_trials is {n_startup_trials}; a model needs at least 1 trial",
                field="n_startup_trials",
            )
        self.seed = secrets.randbits(63) if seed is None else seed
        self.n_startup_trials = n_startup_trials
        self.search = search
        self._constraints_func = constraints_func

    @abstractmethod
    def sampled(self, outcome: Outcome, context: TrialContext) -> Sampled:
        """A function drawn from the posterior of an outcome."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse a study with several objectives before anything is sampled.

        Raises:
            InvalidInputError: the study has several objectives.
        """
        if len(study.directions) > 1:
            raise InvalidInputError(
                f"{type(self).__name__} optimises one objective, but the study has "
                f"{len(study.directions)}; optimise one of them and give limits to the others with "
                "trial.set_constraint",
                field="directions",
            )

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters of complete trials that have more than one value, each with its latest limits."""
        found: dict[str, BaseDistribution] = {}
        for done in complete_trials(study):
            found.update(done.distributions)
        return {name: spread for name, spread in found.items() if not spread.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the proposed point; none during the start."""
        trials = complete_trials(study)
        if not search_space or len(trials) < self.n_startup_trials:
            return {}
        space = Space(search_space, trials)
        context = TrialContext(study, trial, trials, space, self.seed)
        outcomes = outcomes_of(trials, study.direction, space)
        objective, *constraints = (self.sampled(outcome, context) for outcome in outcomes)
        limits = [outcome.limit for outcome in outcomes[1:]]
        goal = Goal(objective, list(zip(constraints, limits, strict=True)))
        rng = np.random.default_rng(context.seed_of("search"))
        row = best_point(space, goal, rng, _anchors(context), self.search)
        return space.params(row)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A value of one parameter from the Latin hypercube of this block of trials."""
        block, place = divmod(trial.number, self.n_startup_trials)
        order = np.random.default_rng(seed_of(f"{self.seed}/{param_name}/{block}"))
        stratum = order.permutation(self.n_startup_trials)[place]
        within = np.random.default_rng(seed_of(f"{self.seed}/{param_name}/{trial.number}")).random()
        quantile = np.array([(stratum + within) / self.n_startup_trials])
        axis = axis_of(param_name, param_distribution)
        return axis.value(float(axis.stratified(quantile)[0]))

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Keep the values of ``constraints_func`` where Optuna's own samplers keep them.

        Raises:
            ValueError: one is NaN.
        """
        if self._constraints_func is None or state != TrialState.COMPLETE:
            return
        found = tuple(float(value) for value in self._constraints_func(trial))
        if np.isnan(found).any():
            raise ValueError(f"constraints_func gave NaN for trial {trial.number}: {found}")
        study._storage.set_trial_system_attr(trial._trial_id, _CONSTRAINTS, found)


class TrialContext:
    """Everything a model may look at for one trial.

    Attributes:
        trials: the complete trials, in order of their numbers.
    """

    def __init__(
        self,
        study: Study,
        trial: FrozenTrial,
        trials: list[FrozenTrial],
        space: Space,
        seed: int,
    ) -> None:
        self.study, self.trial, self.trials, self.space = study, trial, trials, space
        self._seed = seed

    def seed_of(self, purpose: str) -> int:
        """The seed of one use of randomness in this trial."""
        return seed_of(f"{self._seed}/{self.trial.number}/{purpose}")


def complete_trials(study: Study) -> list[FrozenTrial]:
    """The study's complete trials, in order of their numbers."""
    found = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(found, key=lambda trial: trial.number)


def _anchors(context: TrialContext) -> NDArray[np.float64]:
    """Unit rows of the best trials: fewest violations, then the best objective."""
    values = objective_values(context.trials, context.study.direction)
    violations = [sum(max(v, 0.0) for v in trial.constraints.values()) for trial in context.trials]
    order = np.lexsort((-values, np.array(violations)))[:_ANCHORS]
    rows = np.array([context.space.unit_row(context.trials[i].params) for i in order])
    limits = [axis.choices - 1 if axis.choices else 1 for axis in context.space.axes]
    return np.clip(rows, 0, np.array(limits))
