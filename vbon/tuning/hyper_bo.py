"""Hyper-Bayesian optimisation: a search for the model that alternates with the search for the best point.

A RECONSTRUCTION from the abstract of Predictive Modeling through Hyper-Bayesian Optimization (arXiv
2308.00285), which says that the search moves back and forth between models and points, and that the score
of a model is such that the moving search for points leaves the search for models stationary. The score, the
models and both searches are ours; the paper's may differ.

1. Outer: a Gaussian process over (model, score) proposes a model: the first four fill the space, the others
   by Thompson sampling (:mod:`~vbon.tuning.model_space`).
2. Inner: four trials by Thompson sampling with that model. Its length-scales are those of the reference
   process, a fitted Matern-5/2, times the model's factor, and stay as they are during the block; variance
   and noise are fitted again.
3. Score (:mod:`~vbon.tuning.hyper_score`).

The blocks are records in the trials' system attributes. Constraints have the usual fitted process of their
own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from vbon.tuning.encoding import Space
from vbon.tuning.gaussian_process import Process, Trend, correlation
from vbon.tuning.gp_ts import fitted_draw
from vbon.tuning.hyper_score import Block, block_scores
from vbon.tuning.hyperprior import Hyperprior
from vbon.tuning.maximise import Sampled
from vbon.tuning.model_space import (
    SPACE_FILLING,
    Model,
    all_models,
    first_models,
    model_features,
    sampled_scores,
)
from vbon.tuning.network import generator_of
from vbon.tuning.outcomes import Outcome, outcomes_of
from vbon.tuning.thompson import ThompsonSampler, TrialContext, complete_trials

BLOCK = 4  # trials of one model
_RECORD = "vbon:hyper-bo"
_CANDIDATES = 256  # random points at which means and bounds of the reference are compared
_NOISE_SHARES = np.logspace(-6, 0, 25)  # noise variance over the function's variance
_VARIANCES = (0.05, 20.0)  # limits of the function's variance; values have variance 1
_DRAWS = 2000  # of the scores of all models, for the report


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """A model that has led a block, with its score and two controls.

    Attributes:
        log_density: the mean log predictive density of the block's values before they were measured.
        log_evidence: the log marginal likelihood of the data before the block, per value.
    """

    model: Model
    score: float
    log_density: float
    log_evidence: float


@dataclass(frozen=True, slots=True)
class Belief:
    """Probabilities over models.

    Attributes:
        kernels: the probability of each kernel.
        trends: the same for a direction, such as ``"+x"``, or ``"none"``; upwards is towards better values.
        factor: the median factor on the reference's length-scales.
    """

    kernels: dict[str, float]
    trends: dict[str, float]
    factor: float


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The posterior over models after a study: what the search found out about the function.

    Attributes:
        by_score: the probabilities that a model has the highest score. A dozen scores say little.
        by_evidence: the probabilities in proportion to the marginal likelihood of all data, with a slope
            charged half a log of their number.
    """

    scored: list[ScoredModel]
    by_score: Belief
    by_evidence: Belief


class HyperBoSampler(ThompsonSampler):
    """A reconstruction of Hyper-Bayesian optimisation; its arguments are those of the base class."""

    def sampled(self, outcome: Outcome, context: TrialContext) -> Sampled:
        """A function of the posterior under this block's model."""
        if outcome.name != "objective":
            return fitted_draw(outcome, context)
        record = self._record(outcome, context)
        scales = torch.tensor(record["scales"], dtype=torch.float64)
        x, y = torch.from_numpy(outcome.features), torch.from_numpy(outcome.values)
        process = inner_process(Model.of(record), scales, x, y, context.space)
        return process.fitted(x, y).drawn(generator_of(context.seed_of(outcome.name)))

    def report(self, study: Study) -> ModelReport:
        """The posterior over models.

        Raises:
            ValueError: no block has two complete trials yet.
        """
        trials = complete_trials(study)
        spreads: dict[str, Any] = {}
        for trial in trials:
            spreads.update(trial.distributions)
        space = Space({n: d for n, d in spreads.items() if not d.single()}, trials)
        outcome = outcomes_of(trials, study.direction, space)[0]
        rng = np.random.default_rng(self.seed)
        x, y = torch.from_numpy(outcome.features), torch.from_numpy(outcome.values)
        reference = _reference(space, x, y, rng)
        records, blocks, scores = _scored(space, trials, reference, x, y, rng)
        if not blocks:
            raise ValueError("no block of trials of one model is complete yet")
        scored = []
        for record, block, score in zip(records, blocks, scores, strict=True):
            scales, known = torch.tensor(record["scales"], dtype=torch.float64), block.before
            if len(scales) != space.width:
                scales = reference.scales * record["factor"]
            process = inner_process(Model.of(record), scales, x[known], y[known], space)
            posterior = process.fitted(x[known], y[known])
            density = posterior.log_density(x[block.members], y[block.members])
            evidence = posterior.log_evidence() / len(known)
            scored.append(ScoredModel(Model.of(record), float(score), density, evidence))
        names = _numbers(space)
        models = all_models(names)
        tried = model_features([s.model for s in scored], names)
        drawn = sampled_scores(tried, scores, model_features(models, names), rng, _DRAWS)
        wins = np.bincount(drawn.argmax(axis=1), minlength=len(models)) / _DRAWS
        total = np.array([_log_evidence(model, reference, x, y, space) for model in models])
        share = np.exp(total - total.max())
        return ModelReport(scored, _belief(models, wins), _belief(models, share / share.sum()))

    def _record(self, outcome: Outcome, context: TrialContext) -> dict[str, Any]:
        """This trial's block: the last one if it has room, otherwise a new one."""
        space = context.space
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        others = context.study.get_trials(deepcopy=False, states=states)
        members = sorted(
            (t for t in others if _RECORD in t.system_attrs and t.number < context.trial.number),
            key=lambda t: t.number,
        )
        record: dict[str, Any] | None = members[-1].system_attrs[_RECORD] if members else None
        if record is not None:
            count = sum(t.system_attrs[_RECORD]["block"] == record["block"] for t in members)
            if count >= BLOCK or len(record["scales"]) != space.width:
                record = None
        if record is None:
            x, y = torch.from_numpy(outcome.features), torch.from_numpy(outcome.values)
            rng = np.random.default_rng(context.seed_of("model"))
            reference = _reference(space, x, y, rng)
            begun = len({t.system_attrs[_RECORD]["block"] for t in members})
            model = self._proposed(context, begun, reference, x, y, rng)
            record = {
                **asdict(model),
                # The number of the first trial: unlike a count, two workers cannot choose the same one.
                "block": context.trial.number,
                "scales": (reference.scales * model.factor).tolist(),
            }
        storage, trial_id = context.study._storage, context.trial._trial_id
        storage.set_trial_system_attr(trial_id, _RECORD, record)
        return record

    def _proposed(
        self, context: TrialContext, begun: int, reference: Process, x: Tensor, y: Tensor,
        rng: np.random.Generator,
    ) -> Model:  # fmt: skip
        """The next model: one that fills the space, then the best of sampled scores."""
        names = _numbers(context.space)
        if begun < SPACE_FILLING:
            from_seed = np.random.default_rng(self.seed)
            return first_models(names, from_seed)[begun]
        records, _, scores = _scored(context.space, context.trials, reference, x, y, rng)
        if not records:
            return first_models(names, rng)[0]
        models = all_models(names)
        tried = model_features([Model.of(record) for record in records], names)
        drawn = sampled_scores(tried, scores, model_features(models, names), rng, 1)
        return models[int(drawn[0].argmax())]


def inner_process(model: Model, scales: Tensor, x: Tensor, y: Tensor, space: Space) -> Process:
    """The model's process with these length-scales; only variance and noise are fitted to the data."""
    trend = None
    for column, axis in space.numbers.items():
        if model.trend is not None and space.axes[axis].name == model.trend[0]:
            trend = Trend(column, model.trend[1])
    return with_fitted_noise(Process(model.kernel, scales, 1.0, 1e-3, trend), x, y)


def with_fitted_noise(process: Process, x: Tensor, y: Tensor) -> Process:
    """The process with the variance and noise of the highest marginal likelihood."""
    scaled = x / process.scales
    values, vectors = torch.linalg.eigh(correlation(process.kernel, scaled, scaled))
    eigenvalues = values.clamp_min(0).numpy()[None] + _NOISE_SHARES[:, None]
    if process.trend is not None:
        column = x[:, process.trend.column] - x[:, process.trend.column].mean()
        slope = float(column @ y) / max(float(column @ column), 1e-12)
        slope = slope if slope * process.trend.sign > 0 else 0.0
        y = y - slope * column
    turned = (vectors.T @ y).numpy()
    variances = (turned**2 / eigenvalues).mean(axis=1).clip(*_VARIANCES)
    spread = variances[:, None] * eigenvalues
    evidence = -0.5 * (turned**2 / spread + np.log(spread)).sum(axis=1)
    best = int(evidence.argmax())
    variance = float(variances[best])
    noise = variance * float(_NOISE_SHARES[best])
    return Process(process.kernel, process.scales, variance, noise, process.trend)


def _reference(space: Space, x: Tensor, y: Tensor, rng: np.random.Generator) -> Process:
    hyperprior = Hyperprior(space.groups)
    return hyperprior.process("matern-5/2", hyperprior.mode("matern-5/2", x, y, rng))


def _scored(
    space: Space, trials: list[FrozenTrial], reference: Process, x: Tensor, y: Tensor,
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], list[Block], NDArray[np.float64]]:  # fmt: skip
    """The record, data and score of each block with at least two complete trials."""
    members: dict[int, list[int]] = {}
    for i, trial in enumerate(trials):
        if _RECORD in trial.system_attrs:
            members.setdefault(trial.system_attrs[_RECORD]["block"], []).append(i)
    records, blocks = [], []
    for first, inside in members.items():
        before = [i for i, trial in enumerate(trials) if trial.number < first]
        if len(inside) >= 2 and before:
            records.append(trials[inside[0]].system_attrs[_RECORD])
            blocks.append(Block(np.array(before), np.array(inside)))
    random = torch.from_numpy(space.features(space.draw(rng, _CANDIDATES)))
    scores = block_scores(reference, x, y, blocks, torch.cat([random, x]))
    return records, blocks, scores


def _numbers(space: Space) -> list[str]:
    return [space.axes[axis].name for axis in space.numbers.values()]


def _log_evidence(
    model: Model, reference: Process, x: Tensor, y: Tensor, space: Space
) -> float:  # fmt: skip
    """The log marginal likelihood of the data under a model, less half a log of their number for a slope."""
    process = inner_process(model, reference.scales * model.factor, x, y, space)
    price = 0.0 if model.trend is None else 0.5 * float(np.log(len(y)))
    return process.fitted(x, y).log_evidence() - price


def _belief(models: list[Model], probabilities: NDArray[np.float64]) -> Belief:
    kernels: dict[str, float] = {}
    trends: dict[str, float] = {}
    for model, probability in zip(models, probabilities, strict=True):
        trend = model.trend
        name = "none" if trend is None else ("+" if trend[1] > 0 else "-") + trend[0]
        kernels[model.kernel] = kernels.get(model.kernel, 0.0) + float(probability)
        trends[name] = trends.get(name, 0.0) + float(probability)
    factors = np.array([model.factor for model in models])
    order = np.argsort(factors, kind="stable")
    middle = int(np.searchsorted(np.cumsum(probabilities[order]), 0.5))
    return Belief(kernels, trends, float(factors[order][min(middle, len(models) - 1)]))
