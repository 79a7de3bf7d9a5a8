"""Synthetic problems: the usual test functions, one with noise, one constrained, one conditional."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vbon.tuning.bench.problem import Measurement, Params, Problem

if TYPE_CHECKING:
    import optuna

# Hartmann functions: sum over i of -alpha_i exp(-sum over j of A_ij (x_j - P_ij)^2).
_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A6 = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_P6 = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
_A3 = np.array([[3.0, 10, 30], [0.1, 10, 35], [3.0, 10, 30], [0.1, 10, 35]])
_P3 = 1e-4 * np.array(
    [[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]
)


def _ask_branin(trial: optuna.Trial) -> Params:
    return {"x": trial.suggest_float("x", -5, 10), "y": trial.suggest_float("y", 0, 15)}


def branin(params: Params) -> Measurement:
    """Branin's function: two parameters, three minima of .397887."""
    x, y = params["x"], params["y"]
    bowl = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return Measurement(bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10)


def _ask_unit(trial: optuna.Trial, count: int) -> Params:
    return {f"x{k}": trial.suggest_float(f"x{k}", 0, 1) for k in range(count)}


def hartmann(params: Params) -> Measurement:
    """Hartmann's function of three or six parameters."""
    x = np.array(list(params.values()))
    a, p = (_A6, _P6) if len(x) == 6 else (_A3, _P3)
    return Measurement(-float(_ALPHA @ np.exp(-(a * (x - p) ** 2).sum(axis=1))))


def _ask_levy(trial: optuna.Trial) -> Params:
    return {f"x{k}": trial.suggest_float(f"x{k}", -10, 10) for k in range(10)}


def levy(params: Params) -> Measurement:
    """Levy's function of ten parameters: many local minima, 0 at (1, ..., 1)."""
    w = 1 + (np.array(list(params.values())) - 1) / 4
    inner = (w[:-1] - 1) ** 2 * (1 + 10 * np.sin(math.pi * w[:-1] + 1) ** 2)
    last = (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
    return Measurement(math.sin(math.pi * w[0]) ** 2 + float(inner.sum() + last))


def _ask_constrained(trial: optuna.Trial) -> Params:
    return {"x": trial.suggest_float("x", 0, 6), "y": trial.suggest_float("y", 0, 6)}


def constrained(params: Params) -> Measurement:
    """The first problem of Gardner et al. 2014, Bayesian Optimization with Inequality Constraints."""
    x, y = params["x"], params["y"]
    value = math.cos(2 * x) * math.cos(y) + math.sin(x)
    return Measurement(value, {"c": math.cos(x) * math.cos(y) - math.sin(x) * math.sin(y) + 0.5})


def _ask_conditional(trial: optuna.Trial) -> Params:
    method = trial.suggest_categorical("method", ["plain", "momentum", "adapter"])
    params = {
        "method": method,
        "rate": trial.suggest_float("rate", 1e-5, 1e-1, log=True),
        "updates": trial.suggest_int("updates", 1, 10),
    }
    if method == "momentum":
        params["momentum"] = trial.suggest_float("momentum", 0, 1)
    if method == "adapter":
        params["rank"] = trial.suggest_int("rank", 1, 64, log=True)
    return params


def conditional(params: Params) -> Measurement:
    """A made-up loss of training: a category, a logarithmic rate, an integer, and one setting per category.

    The minimum is 0: adapter, rate 10^-3.5, rank 16, 6 updates.
    """
    rate, updates = math.log10(params["rate"]), 0.02 * abs(params["updates"] - 6)
    if params["method"] == "plain":
        return Measurement(0.25 + 0.2 * (rate + 4) ** 2 + updates)
    if params["method"] == "momentum":
        return Measurement(
            0.15 + 0.3 * (rate + 2) ** 2 + 2 * (params["momentum"] - 0.9) ** 2 + updates
        )
    return Measurement(
        0.3 * (rate + 3.5) ** 2 + 0.1 * (math.log2(params["rank"]) - 4) ** 2 + updates
    )


FUNCTIONS = (
    Problem("branin", "2 numbers", _ask_branin, branin, 0.397887, 300.0, 0.1),
    Problem(
        "noisy-hartmann-3", "3 numbers, noise of sd .3", lambda t: _ask_unit(t, 3), hartmann,
        -3.86278, 4.0, 0.1, noise=0.3,
    ),
    Problem("hartmann-6", "6 numbers", lambda t: _ask_unit(t, 6), hartmann, -3.32237, 4.0, 0.1),
    Problem("levy-10", "10 numbers, many minima", _ask_levy, levy, 0.0, 900.0, 5.0),
    Problem(
        "constrained", "2 numbers, one constraint", _ask_constrained, constrained, -1.8887514, 4.0, 0.05
    ),
    Problem(
        "conditional", "a category, 2 numbers, 1 of 2 more", _ask_conditional, conditional,
        0.0, 8.0, 0.05, conditional=True,
    ),
)  # fmt: skip
