"""The samplers in studies of Optuna: spaces, constraints, batches, failures, resuming and names."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
optuna = pytest.importorskip("optuna")

from optuna.distributions import (  # noqa: E402
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial  # noqa: E402

from tests.plugin_package import write_package  # noqa: E402
from vbon.errors import InvalidInputError  # noqa: E402
from vbon.registry import Registry  # noqa: E402
from vbon.tuning import DEFAULT_SAMPLER, SAMPLERS, make_sampler  # noqa: E402
from vbon.tuning.encoding import Space, axis_of  # noqa: E402
from vbon.tuning.maximise import Goal, SearchSize, best_point  # noqa: E402
from vbon.tuning.network import Architecture  # noqa: E402
from vbon.tuning.outcomes import outcomes_of, standardised  # noqa: E402
from vbon.tuning.sto_bnts import problem_of  # noqa: E402
from vbon.tuning.thompson import TrialContext  # noqa: E402

pytestmark = pytest.mark.train

OURS = ("sto-bnts", "sto-bnts-linear", "hp-gp-ts", "gp-ts", "hyper-bo")
LIGHT = {"search": SearchSize(pool=60, refined=1), "n_startup_trials": 4}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def sampler(name: str, seed: int | None = 0, **options: object) -> optuna.samplers.BaseSampler:
    """A sampler at little effort, or one of Optuna's."""
    if name not in OURS:
        return make_sampler(name, seed)
    light = {**LIGHT, **options}
    if name.startswith("sto"):
        light = {"architecture": Architecture(width=16), **light}
    if name == "sto-bnts":
        light = {"steps": 10, **light}
    return make_sampler(name, seed, **light)


def study_of(
    name: str,
    objective: Callable[[optuna.Trial], float],
    trials: int = 8,
    seed: int = 0,
    **options: object,
) -> optuna.Study:
    study = optuna.create_study(sampler=sampler(name, seed, **options))
    study.optimize(objective, n_trials=trials, catch=(ArithmeticError,))
    return study


def bowl(trial: optuna.Trial) -> float:
    return (trial.suggest_float("x", 0, 1) - 0.3) ** 2


def mixed(trial: optuna.Trial) -> float:
    """Every kind of parameter, conditions, a constraint, failures and a parameter with one value."""
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    value = (math.log10(rate) + 3) ** 2 + trial.suggest_int("count", 1, 8)
    trial.suggest_float("fixed", 2.0, 2.0)
    if kind == "a":
        value += trial.suggest_float("beta", 0.5, 2.5, step=0.5)
    if kind == "b":
        value += trial.suggest_int("n", 2, 64, log=True) / 64
    trial.set_constraint("rate", rate * 1000 - 2)
    if trial.number == 5:
        raise ArithmeticError
    return math.nan if trial.number == 6 else value


SPREADS = {
    "rate": FloatDistribution(1e-4, 1e-2, log=True),
    "count": IntDistribution(1, 9, step=2),
    "kind": CategoricalDistribution(["a", "b", None]),
}


def trial_of(value: float = 0.0, **params: object) -> optuna.trial.FrozenTrial:
    spreads = {**SPREADS, "beta": FloatDistribution(0, 10), "n": IntDistribution(2, 32, log=True)}
    return create_trial(
        params=params, value=value, distributions={name: spreads[name] for name in params}
    )


def test_values_are_encoded_by_hand() -> None:
    space = Space(SPREADS, [trial_of(rate=1e-3, count=7, kind="b")])
    row = space.unit_row({"rate": 1e-3, "count": 7, "kind": None})
    assert row.tolist() == pytest.approx([0.5, 0.75, 2.0])
    half = 1 / math.sqrt(2)
    assert space.features(row[None])[0].tolist() == pytest.approx([0.5, 0.75, 0, 0, half])
    other = space.unit_row({"rate": 1e-3, "count": 7, "kind": "a"})
    distance = np.linalg.norm(space.features(row[None]) - space.features(other[None]))
    assert distance == pytest.approx(1.0)
    assert space.params(row) == {"rate": pytest.approx(1e-3), "count": 7, "kind": None}
    assert space.size == math.inf


@pytest.mark.parametrize(
    "spread",
    [
        FloatDistribution(-2, 5),
        FloatDistribution(1e-6, 1e2, log=True),
        FloatDistribution(0.0, 1.0, step=0.1),
        IntDistribution(-3, 4),
        IntDistribution(3, 12, step=3),
        IntDistribution(1, 100, log=True),
        CategoricalDistribution([2, "x", None, True]),
    ],
)
def test_every_position_is_a_value_of_the_distribution(spread: optuna.distributions.Any) -> None:
    axis = axis_of("p", spread)
    for unit in axis.drawn(np.random.default_rng(0), 50):
        value = axis.value(float(unit))
        assert spread._contains(spread.to_internal_repr(value))
        assert axis.unit(value) == pytest.approx(unit, abs=1e-9)
    if axis.levels:
        assert len({axis.value(float(u)) for u in axis.grid()}) == axis.levels


def test_integers_are_equally_likely() -> None:
    """Each of five values in 2,000 draws: 400 and a standard deviation of 18; false alarm below 1e-5."""
    axis = axis_of("p", IntDistribution(0, 4))
    drawn = [axis.value(float(u)) for u in axis.drawn(np.random.default_rng(1), 2000)]
    assert np.abs(np.bincount(drawn, minlength=5) - 400).max() < 90


def test_conditions_are_learned_from_trials() -> None:
    trials = [
        trial_of(rate=1e-3, kind="a", beta=5.0),
        trial_of(rate=1e-4, kind="b", n=8),
        trial_of(rate=1e-2, kind="a", beta=1.0),
        trial_of(rate=1e-2, kind=None),
    ]
    spreads: dict[str, object] = {}
    for trial in trials:
        spreads.update(trial.distributions)
    space = Space(spreads, trials)
    rows = space.draw(np.random.default_rng(0), 200)
    for row in rows:
        params = space.params(row)
        assert ("beta" in params) == (params["kind"] == "a")
        assert ("n" in params) == (params["kind"] == "b")
    # The middle value where inactive, and a flag for each group.
    names = [axis.name for axis in space.axes]
    features = space.features(space.unit_row(trials[1].params)[None])[0]
    assert features[space.axes[names.index("beta")].start] == 0.5
    assert sorted(features[-2:]) == [0, 1]
    assert len(space.activity.groups) == 2


def test_without_a_deciding_category_the_nearest_trial_decides() -> None:
    trials = [
        trial_of(rate=rate, **({"beta": 1.0} if rate > 1e-3 else {}))
        for rate in (1e-4, 3e-4, 3e-3, 1e-2)
    ]
    space = Space({"rate": SPREADS["rate"], "beta": FloatDistribution(0, 10)}, trials)
    assert np.isnan(space.activity.masked(np.array([[0.05, 0.5], [0.9, 0.5]]))).tolist() == [
        [False, True],
        [False, False],
    ]


def test_outcomes_are_standardised_and_infinite_values_are_the_worst_finite() -> None:
    trials = [trial_of(value, rate=1e-3) for value in (1.0, 3.0, math.inf)]
    space = Space({"rate": SPREADS["rate"]}, trials)
    (objective,) = outcomes_of(trials, optuna.study.StudyDirection.MINIMIZE, space)
    assert objective.values.tolist() == pytest.approx(
        [math.sqrt(2), -math.sqrt(0.5), -math.sqrt(0.5)]
    )
    assert standardised(np.array([5.0, 5.0]))[0].tolist() == [0, 0]


def test_a_constraint_s_limit_is_where_the_raw_value_is_0() -> None:
    """Raw values -2, 0 and 5: the second is exactly at the limit."""
    trials = []
    for raw in (-2.0, 0.0, 5.0):
        trials.append(
            create_trial(
                params={"rate": 1e-3}, distributions={"rate": SPREADS["rate"]}, value=1.0,
                constraints={"c": raw},
            )
        )  # fmt: skip
    space = Space({"rate": SPREADS["rate"]}, trials)
    _, constraint = outcomes_of(trials, optuna.study.StudyDirection.MINIMIZE, space)
    met = constraint.values >= constraint.limit - 1e-9
    assert met.tolist() == [True, True, False]
    assert constraint.values[1] == pytest.approx(constraint.limit)


def test_the_search_finds_the_best_point_of_known_functions() -> None:
    spreads = {**SPREADS, "free": FloatDistribution(0, 1)}
    space = Space(spreads, [])
    names = [axis.name for axis in space.axes]
    column = {axis.name: axis.start for axis in space.axes}

    def objective(x: torch.Tensor) -> torch.Tensor:
        off = (x[:, column["rate"]] - 0.37) ** 2 + (x[:, column["count"]] - 0.6) ** 2
        return x[:, column["kind"] + 1] - off - (x[:, column["free"]] - 0.9) ** 2

    rng, none = np.random.default_rng(0), np.empty((0, len(names)))
    size = SearchSize(pool=50, refined=4)
    found = space.params(best_point(space, Goal(objective), rng, none, size))
    # The nearest of the counts 1, 3, 5, 7, 9 to position .6 is 5.
    assert found["kind"] == "b"
    assert found["count"] == 5
    assert found["free"] == pytest.approx(0.9, abs=1e-3)
    assert math.log10(found["rate"]) == pytest.approx(-4 + 2 * 0.37, abs=1e-3)
    limited = Goal(objective, [(lambda x: -x[:, column["free"]], -0.5)])  # free <= .5
    assert space.params(best_point(space, limited, rng, none, size))["free"] == pytest.approx(
        0.5, abs=5e-3
    )
    # No point meets free <= -1: the least violation is at 0, whatever the objective.
    unmet = Goal(objective, [(lambda x: -x[:, column["free"]], 1.0)])
    assert space.params(best_point(space, unmet, rng, none, size))["free"] == pytest.approx(
        0, abs=1e-3
    )


@pytest.mark.parametrize("name", [*OURS, "qlognei", "gp", "tpe", "random"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_study_of_every_kind_of_parameter(name: str) -> None:
    if name == "qlognei":
        pytest.importorskip("botorch")
    study = study_of(name, mixed, trials=9)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.FAIL) == 2
    assert states.count(TrialState.COMPLETE) == 7
    assert all(trial.params["fixed"] == 2.0 for trial in study.trials)
    assert all("beta" in t.params for t in study.trials if t.params["kind"] == "a")


@pytest.mark.parametrize("name", OURS)
def test_the_same_seed_and_trials_give_the_same_batch(name: str) -> None:
    """A batch of four before any is told: independent slots, another draw each, and the same again."""
    study = study_of(name, bowl, trials=4)
    batches = []
    for seed in (0, 0, 1):
        again = optuna.create_study(sampler=sampler(name, seed))
        again.add_trials(study.trials)
        batches.append([again.ask({"x": FloatDistribution(0, 1)}).params["x"] for _ in range(4)])
    assert batches[0] == batches[1]
    assert batches[0] != batches[2]
    assert len(set(batches[0])) > 1


def test_every_trial_and_outcome_has_a_network_of_its_own() -> None:
    """Part of the sixth oracle: the published code draws the same theta0 and theta' in each round."""
    study = optuna.create_study(sampler=sampler("sto-bnts"))
    study.optimize(bowl, n_trials=2)
    contexts = [
        TrialContext(study, trial, study.trials, Space({}, []), seed)
        for seed in (0, 1)
        for trial in study.trials
    ]
    seeds = [context.seed_of(name) for context in contexts for name in ("objective", "limit")]
    assert len(set(seeds)) == len(seeds) == 8
    x, y = torch.rand(3, 1).double(), torch.tensor([0.0, 1.0, -1.0]).double()
    starts = [problem_of(x, y, 0.1, Architecture(width=8), seed) for seed in (*seeds, seeds[0])]
    first_weights = [float(p.start[0][0][0, 0]) for p, _ in starts]
    last_extra = [float(extra[0][0][0, 0]) for _, extra in starts]
    assert len(set(first_weights)) == len(set(last_extra)) == 8
    assert (first_weights[0], last_extra[0]) == (first_weights[-1], last_extra[-1])


@pytest.mark.parametrize("name", OURS)
def test_choices_do_not_depend_on_the_scale_of_the_outcome(name: str) -> None:
    """The sixth oracle of the neural samplers and the third of hyper-bo: y -> 8 y + 3."""

    def choices(change: Callable[[float], float]) -> list[float]:
        study = study_of(name, lambda trial: change(bowl(trial)), trials=10)
        return [trial.params["x"] for trial in study.trials]

    assert choices(lambda y: 8 * y + 3) == pytest.approx(choices(lambda y: y), abs=1e-4)


@pytest.mark.parametrize("name", OURS)
def test_a_study_goes_on_from_its_storage(name: str, tmp_path: Path) -> None:
    """Another process with the same seed continues as one process would have: nothing is kept elsewhere."""
    from optuna.storages.journal import JournalFileBackend

    whole = study_of(name, bowl, trials=7)
    for part in (5, 2):
        storage = optuna.storages.JournalStorage(JournalFileBackend(f"{tmp_path}/study.log"))
        study = optuna.create_study(
            study_name="s", storage=storage, load_if_exists=True, sampler=sampler(name)
        )
        study.optimize(bowl, n_trials=part)
    assert [t.params for t in study.trials] == [t.params for t in whole.trials]


def test_constraints_func_is_kept_as_optuna_keeps_it() -> None:
    study = study_of("gp-ts", bowl, trials=6, constraints_func=lambda t: (t.params["x"] - 0.1, -1))
    for trial in study.trials:
        assert trial.constraints == {"0": trial.params["x"] - 0.1, "1": -1}
    with pytest.raises(ValueError, match="constraints_func gave NaN for trial 0"):
        study_of("gp-ts", bowl, trials=1, constraints_func=lambda _: (math.nan,))


def test_a_constraint_keeps_the_search_on_its_side() -> None:
    """The minimum .3 is forbidden by x >= .6, so proposals gather there; a sampled limit is a little off."""

    def objective(trial: optuna.Trial) -> float:
        value = bowl(trial)
        trial.set_constraint("x", 0.6 - trial.params["x"])
        return value

    study = study_of("gp-ts", objective, trials=10)
    late = [trial.params["x"] for trial in study.trials[6:]]
    assert late == pytest.approx([0.6] * 4, abs=0.03)
    free = study_of("gp-ts", bowl, trials=10)
    assert [trial.params["x"] for trial in free.trials[6:]] == pytest.approx([0.3] * 4, abs=0.03)


def test_the_start_is_a_latin_hypercube() -> None:
    study = study_of("gp-ts", mixed, trials=4)
    strata = sorted(math.floor(4 * (math.log10(t.params["rate"]) + 5) / 4) for t in study.trials)
    assert strata == [0, 1, 2, 3]


def test_a_space_of_one_point_needs_no_model() -> None:
    study = study_of("hp-gp-ts", lambda trial: trial.suggest_int("k", 3, 3) * 1.0, trials=6)
    assert [trial.params["k"] for trial in study.trials] == [3] * 6


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler("gp-ts"))
    with pytest.raises(
        InvalidInputError, match=r"one objective, but the study has 2; .*set_constraint"
    ):
        study.ask()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "annealing"}, "unknown sampler 'annealing'; choose one of sto-bnts, "),
        ({"name": "hp-gp-ts", "width": 3}, "the sampler 'hp-gp-ts' has no option 'width'"),
        (
            {"name": "gp", "noise": 3},
            "the sampler 'gp' has no option 'noise'; it has n_startup_trials",
        ),
        ({"name": "sto-bnts", "noise": 0.0}, "noise is 0.0; it must be above 0"),
        (
            {"name": "gp-ts", "n_startup_trials": 0},
            "n_startup_trials is 0; a model needs at least 1",
        ),
    ],
)
def test_bad_arguments_say_what_to_do(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_sampler(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("gp-ts", "optuna", "tune"),
        ("gp-ts", "torch", "train"),
        ("qlognei", "optuna", "tune"),
        ("qlognei", "botorch", "botorch"),
        ("qlognei", "optuna_integration", "botorch"),
    ],
)
def test_a_missing_package_names_its_extra(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "optuna_integration":
        pytest.importorskip("botorch")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'vbon\[{extra}\]'") as caught:
        make_sampler(name)
    assert caught.value.name == package


def test_plug_ins_add_samplers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write_package(
        tmp_path,
        {SAMPLERS.group: {"mine": "toy_sampler:Mine", "bad": "toy_sampler:seedless"}},
        name="toy-samplers",
        modules={
            "toy_sampler": "from optuna.samplers import RandomSampler\n"
            "class Mine(RandomSampler):\n    def __init__(self, seed=None): super().__init__(seed)\n"
            "def seedless(): ...\n"
        },
    )
    again = Registry(
        SAMPLERS.group, SAMPLERS.kind, [], SAMPLERS._check, field=SAMPLERS.field
    )  # fmt: skip
    assert type(again["mine"](seed=1)).__name__ == "Mine"
    with pytest.raises(InvalidInputError, match="it does not take the argument seed"):
        again["bad"]
    assert DEFAULT_SAMPLER in SAMPLERS
