"""Constrained noisy log expected improvement by BoTorch (qLogNEI), as a sampler of Optuna studies.

Ament et al. 2023, Unexpected Improvements to Expected Improvement (arXiv 2310.20708). Optuna's
``BoTorchSampler`` brings trials into vectors and back; what it lacks is this acquisition function. One
Gaussian process with BoTorch's own priors models each outcome. Categories are relaxed to numbers, and
parameters that only some trials have are drawn at random.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import optuna
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.objective import GenericMCObjective
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.transforms import Normalize, Standardize
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from gpytorch.mlls import SumMarginalLogLikelihood
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    from optuna_integration import BoTorchSampler

_SAMPLES = 64  # of the outcomes, over which the improvement is averaged
_STARTS, _RAW_STARTS = 4, 64  # of the search for the best point
_FIT_STEPS, _SEARCH_STEPS = 30, 25  # of L-BFGS-B, at most; more change little


class QLogNeiSampler(BoTorchSampler):
    """BoTorch's constrained noisy expected improvement; trials that run count as pending.

    Args:
        seed: the same seed, trials and trial number give the same parameters.
        n_startup_trials: trials at random before the model is used.
    """

    def __init__(self, seed: int | None = None, n_startup_trials: int = 10) -> None:
        short = None if seed is None else seed % 2**31
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                candidates_func=qlognei_candidate,
                n_startup_trials=n_startup_trials,
                consider_running_trials=True,
                independent_sampler=RandomSampler(seed=short),
                seed=short,
            )
        self._first_seed = short

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the proposed point, whose seed depends on the number of the trial alone."""
        if self._first_seed is not None:
            self._seed = self._first_seed + trial.number
        found: dict[str, Any] = super().sample_relative(study, trial, search_space)
        return found


def qlognei_candidate(
    params: Tensor,
    values: Tensor,
    constraints: Tensor | None,
    bounds: Tensor,
    pending: Tensor | None,
) -> Tensor:
    """The point with the largest expected improvement.

    Args:
        params: shape (n, d).
        values: of the objective, larger is better, shape (n, 1); infinite ones count as the worst or best
            finite one.
        constraints: met where at most 0, shape (n, c).
        bounds: shape (2, d).
        pending: points of trials that run, shape (m, d).
    """
    outcomes = _finite(values if constraints is None else torch.cat([values, -constraints], dim=1))
    models = [
        SingleTaskGP(
            params,
            outcomes[:, k : k + 1],
            input_transform=Normalize(params.shape[1], bounds=bounds),
            outcome_transform=Standardize(1),
        )
        for k in range(outcomes.shape[1])
    ]
    model = ModelListGP(*models)
    fit_gpytorch_mll(
        SumMarginalLogLikelihood(model.likelihood, model),
        optimizer_kwargs={"options": {"maxiter": _FIT_STEPS}},
    )
    # Each is met where at most 0.
    limits = [partial(_negated, column=k) for k in range(1, outcomes.shape[1])]
    improvement = qLogNoisyExpectedImprovement(
        model,
        params,
        sampler=SobolQMCNormalSampler(torch.Size([_SAMPLES])),
        objective=GenericMCObjective(lambda samples, X=None: samples[..., 0]),
        X_pending=pending if pending is not None and len(pending) else None,
        constraints=limits or None,
        prune_baseline=True,
    )
    found, _ = optimize_acqf(
        improvement, bounds, q=1, num_restarts=_STARTS, raw_samples=_RAW_STARTS,
        options={"batch_limit": _STARTS, "maxiter": _SEARCH_STEPS},
    )  # fmt: skip
    return found.detach()


def _negated(samples: Tensor, column: int) -> Tensor:
    return -samples[..., column]


def _finite(outcomes: Tensor) -> Tensor:
    """Outcomes with infinite values replaced by the largest or smallest finite one of their column."""
    columns = []
    for column in outcomes.unbind(dim=1):
        known = column[torch.isfinite(column)]
        low, high = (known.min(), known.max()) if len(known) else (column.new_zeros(()),) * 2
        columns.append(column.clamp(low, high))
    return torch.stack(columns, dim=1)
