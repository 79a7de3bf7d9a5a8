"""Gaussian processes, draws of their priors, and the reconstruction of Hyper-Bayesian optimisation.

Each statistical test states the probability that correct code fails it with another seed.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import settings

torch = pytest.importorskip("torch")
optuna = pytest.importorskip("optuna")

from scipy.stats import chi2  # noqa: E402

from vbon.tuning import make_sampler  # noqa: E402
from vbon.tuning.gaussian_process import (  # noqa: E402
    STATIONARY,
    Process,
    Trend,
    correlation,
    log_evidence,
)
from vbon.tuning.hyper_bo import with_fitted_noise  # noqa: E402
from vbon.tuning.hyper_score import OFFSET, Block, block_scores  # noqa: E402
from vbon.tuning.hyperprior import Hyperprior, pick, slice_moves  # noqa: E402
from vbon.tuning.maximise import SearchSize  # noqa: E402
from vbon.tuning.model_space import Model, model_features, sampled_scores  # noqa: E402
from vbon.tuning.network import generator_of  # noqa: E402

pytestmark = pytest.mark.train

GRID = torch.linspace(0, 1, 81, dtype=torch.float64)[:, None]


def nightly() -> bool:
    return settings.get_current_profile_name() == "new-examples"


def process(kernel: str = "matern-5/2", scale: float = 0.3, noise: float = 0.04) -> Process:
    return Process(kernel, torch.tensor([scale], dtype=torch.float64), 1.5, noise)


def test_kernels_at_distance_1_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    expected = {
        "matern-3/2": (1 + math.sqrt(3)) * math.exp(-math.sqrt(3)),
        "matern-5/2": (1 + math.sqrt(5) + 5 / 3) * math.exp(-math.sqrt(5)),
        "rbf": math.exp(-0.5),
    }
    for kernel, value in expected.items():
        found = correlation(kernel, x, x)
        assert float(found[0, 1]) == pytest.approx(value)
        assert float(found[0, 0]) == pytest.approx(1)


@pytest.mark.parametrize("kernel", [*STATIONARY, "ntk"])
def test_prior_draws_have_the_kernel_as_covariance(kernel: str) -> None:
    """6 entries within 5 standard errors: false alarm 4e-6; draws are nearly normal."""
    at, prior = GRID[[0, 30, 50]], process(kernel)
    count = 60 if kernel == "ntk" else 400
    draws = torch.stack([prior.drawn(1, generator_of(s))(at) for s in range(count)]).numpy()
    expected = prior.covariance(at, at).numpy()
    own = np.diag(expected)
    error = np.sqrt((own[:, None] * own[None] + expected**2) / len(draws))
    assert (np.abs(draws.T @ draws / len(draws) - expected) <= 5 * error + 0.01).all()


def test_posterior_draws_have_the_posterior_s_moments_and_evidence_is_the_normal_density() -> None:
    """3 means and variances of 500 draws within 5 standard errors: false alarm 4e-6."""
    x, y = GRID[[5, 20, 60]], torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
    prior, at = process(), GRID[[0, 40, 75]]
    posterior = prior.fitted(x, y)
    mean, variance = (part.numpy() for part in posterior.moments(at))
    draws = torch.stack([posterior.drawn(generator_of(s))(at) for s in range(500)]).numpy()
    assert (np.abs(draws.mean(axis=0) - mean) <= 5 * np.sqrt(variance / 500)).all()
    assert (np.abs(draws.var(axis=0) / variance - 1) <= 5 * math.sqrt(2 / 500)).all()
    gram = prior.covariance(x, x) + prior.noise * torch.eye(3, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), gram)
    scales, one = prior.scales[None], torch.ones(1, dtype=torch.float64)
    found = log_evidence(prior.kernel, scales, 1.5 * one, 0.04 * one, x, y)
    assert float(found[0]) == pytest.approx(float(normal.log_prob(y)), abs=1e-6)
    with_mean = float(normal.log_prob(y - posterior.mean[0]))
    assert posterior.log_evidence() == pytest.approx(with_mean, abs=1e-6)


def test_a_trend_has_its_sign_or_is_flat() -> None:
    x = GRID[::10]
    for sign, slope in ((1, 2.0), (-1, 0.0)):
        rising = Process("rbf", torch.tensor([5.0]).double(), 1e-4, 0.01, Trend(0, sign))
        fitted = rising.fitted(x, 2 * x[:, 0] - 1)
        assert float(fitted.mean[1]) == pytest.approx(slope, abs=0.05)


def test_variance_and_noise_of_highest_evidence_by_enumeration() -> None:
    x = GRID[::8]
    y = torch.from_numpy(np.random.default_rng(0).standard_normal(len(x)))
    prior = process(scale=0.2)
    found = with_fitted_noise(prior, x, y)
    scales = prior.scales.expand(40 * 40, 1)
    variances = torch.logspace(-1.2, 1.2, 40, dtype=torch.float64).repeat_interleave(40)
    noises = torch.logspace(-6, 0, 40, dtype=torch.float64).repeat(40) * variances
    best = float(log_evidence(prior.kernel, scales, variances, noises, x, y).max())
    one = torch.ones(1, dtype=torch.float64)
    ours = log_evidence(
        prior.kernel, prior.scales[None], found.variance * one, found.noise * one, x, y
    )
    assert float(ours[0]) >= best - 0.05


def test_priors_are_drawn_in_proportion_to_their_evidence() -> None:
    """Chi-squared of 3,000 picks among three weights; false alarm 1e-5."""
    rng = np.random.default_rng(0)
    weights = np.array([0.6, 0.3, 0.1])
    seen = np.bincount([pick(np.log(weights) - 900, rng) for _ in range(3000)], minlength=3)
    statistic = ((seen - 3000 * weights) ** 2 / (3000 * weights)).sum()
    assert statistic < chi2.isf(1e-5, 2)


def test_slice_moves_leave_the_posterior_as_it_is() -> None:
    """A normal likelihood N(1; u, 1) under the prior N(0, 1): the posterior is N(1/2, 1/2).

    Every fifth of 6,000 moves is nearly independent: 1,200 values, 5 standard errors; false alarm 1e-6.
    """
    rng, u, kept = np.random.default_rng(0), np.zeros(1), []
    for _ in range(1200):
        u = slice_moves(u, lambda v: -0.5 * float((v[0] - 1) ** 2), rng, 5)
        kept.append(u[0])
    assert np.mean(kept) == pytest.approx(0.5, abs=5 * math.sqrt(0.5 / 1200))
    assert np.var(kept) == pytest.approx(0.5, rel=5 * math.sqrt(2 / 1200))


def test_drawn_hyperparameters_know_the_length_scale() -> None:
    """Data of length-scale .15 at 20 points: the mean log of 12 draws is nearer to it than the prior's .5."""
    truth = Process("matern-5/2", torch.tensor([0.15]).double(), 1.0, 1e-3)
    x = GRID[::4]
    y = truth.drawn(1, generator_of(3))(x)
    hyperprior, rng = Hyperprior(np.zeros(1, dtype=np.intp)), np.random.default_rng(0)
    drawn = [
        hyperprior.posterior_draw(STATIONARY, x, y, rng, candidates=16, moves=3) for _ in range(12)
    ]
    logs = [float(hyperprior.process(kernel, u).scales[0].log()) for kernel, u in drawn]
    assert abs(np.mean(logs) - math.log(0.15)) < abs(math.log(0.5) - math.log(0.15)) / 2
    mode = hyperprior.mode("matern-5/2", x, y, rng)
    evidence = hyperprior.evidence("matern-5/2", torch.stack([mode, torch.zeros(3).double()]), x, y)
    assert float(evidence[0]) > float(evidence[1])


class Race:
    """Scores of blocks and raw improvements of searches with fixed length-scales, the true one known.

    Each function is searched from 4 points, in blocks of 4, by Thompson sampling.
    """

    def __init__(
        self,
        points: torch.Tensor,
        scale: float,
        functions: int,
        factors: tuple[float, ...],
        blocks: int,
    ) -> None:
        inputs = points.shape[1]
        truth = Process("matern-5/2", torch.full((inputs,), scale).double(), 1.0, 1e-4)
        self.scores = np.empty((functions, len(factors), blocks))
        self.improvements = np.empty_like(self.scores)
        parts = [
            Block(np.arange(4 + 4 * b), np.arange(4 + 4 * b, 8 + 4 * b)) for b in range(blocks)
        ]
        for f in range(functions):
            values = truth.drawn(inputs, generator_of(1000 + f))(points)
            rng = np.random.default_rng(f)
            start = list(rng.choice(len(points), 4, replace=False))
            noise = 0.01 * torch.from_numpy(rng.standard_normal(4 + 4 * blocks))
            for k, factor in enumerate(factors):
                model = Process(truth.kernel, truth.scales * factor, 1.0, 1e-4)
                chosen = list(start)
                for step in range(4 * blocks):
                    posterior = model.fitted(points[chosen], values[chosen] + noise[: len(chosen)])
                    drawn = posterior.drawn(generator_of(f * 997 + step))
                    chosen.append(int(drawn(points).argmax()))
                y = values[chosen] + noise
                self.scores[f, k] = block_scores(truth, points[chosen], y, parts, points)
                self.improvements[f, k] = np.diff(np.maximum.accumulate(y.numpy())[3::4])


def t_statistic(values: np.ndarray) -> float:
    """The mean in standard errors."""
    return float(values.mean() / (values.std(ddof=1) / math.sqrt(len(values))))


def test_the_true_length_scale_has_the_highest_score() -> None:
    """The first oracle of hyper-bo: l* above .1 l* and 10 l*, paired over functions.

    Over 200 functions the differences are 8.1 and 10.8 standard errors. Over 30 they are 3.1 and 4.2 on
    average, so that another seed fails with probability 1.1e-3; over 200, below 1e-15.
    """
    race = Race(GRID, 0.1, 200 if nightly() else 30, (1.0, 0.1, 10.0), 2)
    means = race.scores.mean(axis=2)
    assert t_statistic(means[:, 0] - means[:, 1]) > 0
    assert t_statistic(means[:, 0] - means[:, 2]) > 0


def test_scores_do_not_fall_with_the_number_of_trials_as_raw_improvement_does() -> None:
    """The second oracle, on functions that are far from solved after 20 trials: the slopes on n.

    False alarm .003 for the score and, with about -3 standard errors for the improvement, .02.
    """
    line = torch.linspace(0, 1, 15, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    race = Race(points, 0.15, 200 if nightly() else 24, (1.0,), 4)
    n = np.arange(4.0) - 1.5
    assert abs(t_statistic(race.scores[:, 0] @ n)) < 3
    assert t_statistic(race.improvements[:, 0] @ n) < -1


@pytest.mark.parametrize(("rate", "size"), [(0.5, 3.0), (1.2, 0.7)])
def test_the_score_is_the_exponent_of_a_power_law(rate: float, size: float) -> None:
    """Where the gap is C n^-a after n trials, s is a, whatever C and n; no improvement is 0."""
    count, top = 12, 5.0
    n = np.arange(1.0, count + 1)
    # A tiny length-scale and noise: the best posterior mean is the best value, the bound is the last value.
    best = top - size * n**-rate + OFFSET
    x = torch.arange(count + 1.0, dtype=torch.float64)[:, None]
    y = torch.from_numpy(np.append(best, top))
    reference = Process("rbf", torch.tensor([1e-3]).double(), 100.0, 1e-12)
    blocks = [Block(np.arange(k), np.arange(k, k + 4)) for k in (2, 5, 8)]
    scores = block_scores(reference, x, y, blocks, x)
    assert scores == pytest.approx([rate] * 3, abs=0.01)
    still = [Block(np.array([count - 1]), np.array([0, 1, 2]))]
    assert block_scores(reference, x, y, still, x).tolist() == [0]


def light_hyper_bo(seed: int, pool: int = 60) -> optuna.samplers.BaseSampler:
    return make_sampler("hyper-bo", seed, n_startup_trials=4, search=SearchSize(pool, 1))


def test_a_flat_objective_scores_0_and_the_report_is_complete() -> None:
    """The fourth oracle: without improvement the score is 0 and never NaN; blocks have four trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=light_hyper_bo(0))
    study.optimize(lambda trial: 0.0 * trial.suggest_float("x", 0, 1), n_trials=13)
    blocks = [t.system_attrs["vbon:hyper-bo"]["block"] for t in study.trials[4:]]
    assert blocks == [4] * 4 + [8] * 4 + [12]
    report = study.sampler.report(study)
    assert [scored.score for scored in report.scored] == [0, 0]
    assert report.scored[0].model == Model("matern-5/2", 1.0)
    assert all(math.isfinite(s.log_density + s.log_evidence) for s in report.scored)
    for belief in (report.by_score, report.by_evidence):
        assert sum(belief.kernels.values()) == pytest.approx(1)
        assert sum(belief.trends.values()) == pytest.approx(1)
        assert set(belief.trends) == {"none", "+x", "-x"}
    json.dumps(study.trials[-1].system_attrs)  # as storages keep it


def test_scores_do_not_depend_on_the_scale_of_the_outcome() -> None:
    """The third oracle of hyper-bo: y -> 8 y + 3 leaves every score and both controls as they are."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def scored(scale: float, shift: float) -> list[float]:
        study = optuna.create_study(sampler=light_hyper_bo(0))
        study.optimize(
            lambda t: scale * (t.suggest_float("x", 0, 1) - 0.3) ** 2 + shift, n_trials=12
        )
        report = study.sampler.report(study)
        return [v for s in report.scored for v in (s.score, s.log_density, s.log_evidence)]

    found = scored(1.0, 0.0)
    assert len(found) == 6
    assert max(found[::3]) > 0
    assert scored(8.0, 3.0) == pytest.approx(found, abs=1e-3)


def test_hyper_bo_is_not_worse_than_the_fitted_process_at_equal_budget() -> None:
    """The fifth oracle: regrets of hyper-bo less those of gp-ts after equal trials, paired by function.

    Functions of 41 points from a process with length-scale .1. The mean difference of the logarithms must
    not be above 0 by 3 of its standard errors: false alarm 1.3e-3 if the two are equally good.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    truth = Process("matern-5/2", torch.tensor([0.1]).double(), 1.0, 1e-6)
    count = 40 if nightly() else 8
    logs = np.empty((count, 2))
    for seed in range(count):
        values = truth.drawn(1, generator_of(500 + seed))(GRID[::2]).numpy()
        for k, name in enumerate(("hyper-bo", "gp-ts")):
            sampler = make_sampler(name, seed, n_startup_trials=4, search=SearchSize(60, 1))
            study = optuna.create_study(sampler=sampler)
            study.optimize(lambda t, v=values: float(v[t.suggest_int("place", 0, 40)]), n_trials=12)
            logs[seed, k] = math.log(study.best_value - values.min() + OFFSET)
    difference = logs[:, 0] - logs[:, 1]
    spread = difference.std(ddof=1) / math.sqrt(count)
    assert difference.mean() <= 3 * max(spread, 1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_direction_is_found(sign: int) -> None:
    """The sixth oracle: a slope of 3 against waves of 1 has most of the evidence.

    Three other seeds of 30 trials gave it .99 or more. By score it is not found: the search is over too soon.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def value(trial: optuna.Trial) -> float:
        x, a, b = (trial.suggest_float(name, 0, 1) for name in "xab")
        return -3 * sign * x + 0.5 * math.sin(7 * a) + 0.5 * math.sin(5 * b + 1)

    sampler = make_sampler("hyper-bo", 0, n_startup_trials=14, search=SearchSize(60, 1))
    study = optuna.create_study(sampler=sampler)
    study.optimize(value, n_trials=18)
    trends = sampler.report(study).by_evidence.trends
    assert trends["+x" if sign > 0 else "-x"] > 0.8, trends


def test_a_direction_with_high_scores_is_chosen() -> None:
    """Scores of 1 for models that rise along x and 0 for others lead to models that do."""
    models = [
        Model("rbf", 1.0, ("x", 1)), Model("rbf", 1.4, ("x", 1)), Model("ntk", 0.8, ("x", 1)),
        Model("rbf", 1.0, ("x", -1)), Model("ntk", 0.7, ("y", 1)), Model("rbf", 1.2),
    ]  # fmt: skip
    scores = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    tried = model_features(models, ["x", "y"])
    others = [
        Model("rbf", 0.9, trend) for trend in (("x", 1), ("x", -1), ("y", 1), ("y", -1), None)
    ]
    rows = model_features(others, ["x", "y"])
    drawn = sampled_scores(tried, scores, rows, np.random.default_rng(0), 500)
    chosen = np.bincount(drawn.argmax(axis=1), minlength=5)
    assert chosen[0] > 300
