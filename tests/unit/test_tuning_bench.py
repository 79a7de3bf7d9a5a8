"""The bench of samplers: its problems, its pairing, and its figures."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
optuna = pytest.importorskip("optuna")

from optuna.trial import FixedTrial  # noqa: E402

from vbon.errors import DataError, InvalidInputError  # noqa: E402
from vbon.tuning.bench.command import run_bench  # noqa: E402
from vbon.tuning.bench.config import TuneBenchConfig  # noqa: E402
from vbon.tuning.bench.functions import FUNCTIONS  # noqa: E402
from vbon.tuning.bench.problem import Measurement, Problem  # noqa: E402
from vbon.tuning.bench.recorded import recorded_problem  # noqa: E402
from vbon.tuning.bench.report import figures, sentences  # noqa: E402
from vbon.tuning.bench.run import regrets  # noqa: E402

pytestmark = pytest.mark.train

TABLE = Path(__file__).resolve().parents[2] / "docs/comparison/tables/sandbox-0-search.csv"
HARTMANN_6 = [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573]
MINIMA = {
    "branin": {"x": math.pi, "y": 2.275},
    "noisy-hartmann-3": {"x0": 0.114614, "x1": 0.555649, "x2": 0.852547},
    "hartmann-6": {f"x{k}": at for k, at in enumerate(HARTMANN_6)},
    "levy-10": {f"x{k}": 1.0 for k in range(10)},
    "constrained": {"x": 4.622641, "y": 5.849334},
    "conditional": {"method": "adapter", "rate": 10**-3.5, "rank": 16, "updates": 6},
}  # fmt: skip


@pytest.mark.parametrize("problem", FUNCTIONS, ids=lambda problem: problem.name)
def test_published_minima_have_no_regret_and_random_points_have_some(problem: Problem) -> None:
    at = problem.measure(problem.ask(FixedTrial(MINIMA[problem.name])))
    assert at.value == pytest.approx(problem.best, abs=1e-4)
    assert all(value <= 1e-5 for value in at.constraints.values())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    found = [problem.measure(problem.ask(study.ask())) for _ in range(300)]
    feasible = [m.value for m in found if m.feasible]
    assert min(feasible) >= problem.best - 1e-6
    assert max(feasible) - problem.best < problem.unmet


def test_a_recorded_search_is_looked_up_by_its_nearest_cell() -> None:
    problem = recorded_problem(TABLE)
    with TABLE.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        params = {"method": row["method"]}
        params |= {k: float(v) for k, v in (part.split("=") for part in row["setting"].split(", "))}
        near = {k: v * 1.02 if isinstance(v, float) else v for k, v in params.items()}
        found = problem.measure(near)
        assert found.value == -float(row["win_rate.mean"])
        limit = math.log(16) - 15 / 16
        assert found.constraints["kl"] == pytest.approx(float(row["kl_nats.mean"]) - limit)
        inside = dict(params)
        assert problem.ask(FixedTrial(inside)) == params
    best = max(float(r["win_rate.mean"]) for r in rows if float(r["kl_nats.mean"]) <= limit)
    assert problem.best == -best


@pytest.mark.parametrize(
    ("text", "n", "message"),
    [
        ("a,b\n1,2\n", 16, "not a table of a search"),
        ("method,setting,status,win_rate.mean,kl_nats.mean\n", 16, "no cell with status ok"),
        (
            "method,setting,status,win_rate.mean,kl_nats.mean\nm,beta=1,ok,.6,3\n",
            4,
            "give a larger n",
        ),
    ],
)
def test_an_unusable_table_says_why(tmp_path: Path, text: str, n: int, message: str) -> None:
    file = tmp_path / "search.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        recorded_problem(file, n)
    with pytest.raises(DataError, match="not a table"):
        recorded_problem(tmp_path / "none.csv")


def test_studies_of_a_seed_have_the_same_start_and_the_recommended_point_s_exact_regret() -> None:
    seen: list[float] = []

    def ask(trial: optuna.Trial) -> dict[str, float]:
        seen.append(trial.suggest_float("x", 0, 1))
        return {"x": seen[-1]}

    problem = Problem("line", "", ask, lambda p: Measurement(p["x"]), 0.0, 9.0, 0.1, noise=0.3)
    first = regrets(problem, "random", 3, 8, 5)
    second = regrets(problem, "tpe", 3, 8, 5)
    assert seen[:5] == seen[8:13]
    assert (first[:5] == second[:5]).all()
    assert set(first) <= set(seen)
    # Noise hides the lowest value from time to time, so the regret may rise; without it, it cannot.
    quiet = Problem("line", "", ask, lambda p: Measurement(p["x"]), 0.0, 9.0, 0.1)
    assert (np.diff(regrets(quiet, "random", 3, 8, 5)) <= 0).all()
    never = Problem("no", "", ask, lambda p: Measurement(p["x"], {"c": 1.0}), 0.0, 9.0, 0.1)
    assert (regrets(never, "random", 3, 6, 5) == 9).all()


def test_figures_by_hand() -> None:
    problem = Problem("p", "", None, None, 0.0, 9.0, 0.5)  # type: ignore[arg-type]
    curves = {
        "p": {
            "random": np.array([[3.0, 2.0], [3.0, 2.0], [2.0, 2.0]]),
            "gp": np.array([[1.0, 1.0], [0.4, 0.1], [1.0, 0.2]]),
            "sto-bnts": np.array([[3.0, 2.5], [3.0, 2.5], [3.0, 2.5]]),
        }
    }
    found = figures([problem], curves)
    rows = found["problems"]["p"]["samplers"]
    assert rows["gp"]["median_regret"] == pytest.approx(0.2)
    assert rows["gp"]["evaluations"] == 2
    assert rows["random"]["evaluations"] is None
    assert rows["sto-bnts"]["differences"]["random"] == {
        "mean": 0.5,
        "low": 0.5,
        "high": 0.5,
        "count": 3,
    }
    assert [found["ranks"][name]["mean"] for name in ("gp", "random", "sto-bnts")] == [1, 2, 3]
    assert sentences(found) == [
        "sto-bnts against random: loses on p.",
        "sto-bnts against gp: loses on p.",
        "Lowest mean rank: gp (1.00).",
    ]


def test_the_command_runs_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TuneBenchConfig(
        samplers=["random", "tpe"], problems=["branin"], tables=[TABLE], seeds=2, trials=6, start=4,
        json=tmp_path / "b.json", markdown=tmp_path / "b.md",
    )  # fmt: skip
    run_bench(config)
    written = json.loads((tmp_path / "b.json").read_text())
    assert set(written["regrets"]) == {"branin", "sweep-sandbox-0-search"}
    assert np.array(written["regrets"]["branin"]["tpe"]).shape == (2, 6)
    text = (tmp_path / "b.md").read_text()
    assert "| tpe |" in text
    assert "Lowest mean rank: " in text
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samplers": ["none"]}, "unknown sampler 'none'"),
        ({"problems": ["rosenbrock"]}, "unknown problem 'rosenbrock'; choose one of branin"),
        (
            {"trials": 10, "start": 10},
            "trials is 10 and start 10; samplers need trials after the start",
        ),
        ({"problems": ["none"]}, "no problem is left; name one with --problems or --tables"),
    ],
)
def test_bad_settings_say_what_to_do(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        run_bench(TuneBenchConfig(**settings))
