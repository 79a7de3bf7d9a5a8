"""BoTorch's constrained noisy expected improvement as a sampler."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
optuna = pytest.importorskip("optuna")
pytest.importorskip("botorch")
pytest.importorskip("optuna_integration")

from optuna.distributions import FloatDistribution  # noqa: E402

from tests.unit.test_tuning_bench import asked_after_a_common_start  # noqa: E402
from vbon.tuning import make_sampler  # noqa: E402
from vbon.tuning.botorch_sampler import _finite, qlognei_candidate  # noqa: E402

pytestmark = pytest.mark.train

BOUNDS = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
X = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
VALUES = -((X - 0.4) ** 2)


def candidate(
    constraints: torch.Tensor | None = None, pending: torch.Tensor | None = None
) -> float:
    torch.manual_seed(0)
    return float(qlognei_candidate(X, VALUES, constraints, BOUNDS, pending)[0, 0])


def test_the_proposal_is_the_best_point_that_the_limit_allows() -> None:
    """A parabola with its top at .4 is known almost exactly; x >= .7 leaves .7, x <= 2 forbids nothing."""
    free = candidate()
    assert free == pytest.approx(0.4, abs=0.05)
    assert candidate(0.7 - X) == pytest.approx(0.7, abs=0.05)
    assert candidate(X - 2) == pytest.approx(0.4, abs=0.05)
    # Two limits at once: .55 <= x <= .6.
    assert 0.5 < candidate(torch.cat([0.55 - X, X - 0.6], dim=1)) < 0.65
    # A point that is being tried is not proposed again.
    assert abs(candidate(pending=torch.tensor([[free]], dtype=torch.float64)) - free) > 1e-3


def test_further_samplers_are_made_once_the_package_is_imported() -> None:
    """On import, optuna_integration puts a module without a specification in its own place."""
    from optuna_integration import BoTorchSampler

    assert [isinstance(make_sampler("qlognei", seed), BoTorchSampler) for seed in (0, 1)] == [
        True
    ] * 2


def test_infinite_outcomes_count_as_the_worst_or_best_finite_one_of_their_column() -> None:
    inf = math.inf
    found = _finite(torch.tensor([[1.0, inf], [-inf, inf], [2.0, inf], [inf, -inf]]))
    assert found.tolist() == [[1, 0], [1, 0], [2, 0], [2, 0]]


def test_the_same_seed_and_trials_give_the_same_proposal_in_another_process() -> None:
    """Nothing but the seed and the trials decides, so a study goes on from its storage."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def bowl(trial: optuna.Trial) -> float:
        return (trial.suggest_float("x", 0, 1) - 0.3) ** 2

    whole = optuna.create_study(sampler=make_sampler("qlognei", 1, n_startup_trials=3))
    whole.optimize(bowl, n_trials=5)
    for seed, same in ((1, True), (2, False)):
        again = optuna.create_study(sampler=make_sampler("qlognei", seed, n_startup_trials=3))
        again.add_trials(whole.trials[:4])
        x = again.ask({"x": FloatDistribution(0, 1)}).params["x"]
        assert (x == whole.trials[4].params["x"]) is same
    assert whole.best_value < 0.01


@pytest.mark.parametrize("sampler", ["qlognei", "sto-bnts"])
def test_models_look_at_outcomes_from_the_first_evaluation_of_the_bench_after_the_start(
    sampler: str,
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    one, other = asked_after_a_common_start(sampler)
    assert one[:4] == other[:4]
    assert one[4] != other[4]
