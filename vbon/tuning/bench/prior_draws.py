"""Problems whose functions are drawn from a prior, another one for each seed.

Each suits the assumption of one optimiser: a Gaussian process that of Bayesian optimisation (and of the
oracle of hyper-bo, whose models are Gaussian processes), an infinitely wide network that of neural Thompson
sampling.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from vbon.maths.seeds import seed_of
from vbon.tuning.bench.problem import Instance, Measurement, Params, Problem

if TYPE_CHECKING:
    import optuna

    from vbon.tuning.gaussian_process import Kernel

_POINTS = 4096
_REFINED, _MOVES, _ROUNDS = 10, 20, 16  # of the points, moved so often in so many rounds


def drawn_problem(
    name: str, kernel: Kernel, scale: float, inputs: int, points: int = _POINTS
) -> Problem:
    """Functions on the unit cube, drawn from a Gaussian process with variance 1.

    Args:
        scale: the length-scale of every input.
        points: the number of points at which the lowest value is searched before the best are improved.
    """

    @lru_cache(maxsize=64)
    def family(seed: int) -> Instance:
        return _instance(kernel, scale, inputs, seed_of(f"{name}/function/{seed}"), points)

    def ask(trial: optuna.Trial) -> Params:
        return {f"x{k}": trial.suggest_float(f"x{k}", 0, 1) for k in range(inputs)}

    summary = f"{inputs} numbers, a draw of the {kernel} process with length-scale {scale:g}"
    # The function of seed 0 is made when it is asked for: it costs a search.
    return Problem(
        name,
        summary,
        ask,
        lambda params: family(0).measure(params),
        np.nan,
        10.0,
        0.05,
        family=family,
    )


def _instance(kernel: Kernel, scale: float, inputs: int, seed: int, count: int) -> Instance:
    import torch

    from vbon.tuning.gaussian_process import Process
    from vbon.tuning.network import generator_of

    process = Process(kernel, torch.full((inputs,), scale, dtype=torch.float64), 1.0, 0.0)
    function = process.drawn(inputs, generator_of(seed))
    with torch.no_grad():
        sobol = torch.quasirandom.SobolEngine(inputs, scramble=True, seed=seed % 2**31)
        rows = sobol.draw(count, dtype=torch.float64)
        values = function(rows)
        # Steps of ever smaller size: a draw of a network has small jumps, at which descent by slopes stops.
        generator = generator_of(seed + 1)
        for size in np.geomspace(0.3, 3e-4, _ROUNDS):
            kept = values.argsort()[:_REFINED]
            rows, values = rows[kept], values[kept]
            moves = torch.randn(_REFINED * _MOVES, inputs, generator=generator, dtype=torch.float64)
            near = (rows.repeat(_MOVES, 1) + size * moves).clamp(0, 1)
            rows, values = torch.cat([rows, near]), torch.cat([values, function(near)])
        best = float(values.min())

    def measure(params: Params) -> Measurement:
        row = torch.tensor([[params[f"x{k}"] for k in range(inputs)]], dtype=torch.float64)
        with torch.no_grad():
            return Measurement(float(function(row)[0]))

    return Instance(measure, best)


DRAWS = (
    drawn_problem("gp-draw", "matern-5/2", 0.3, 3),
    drawn_problem("ntk-draw", "ntk", 1.0, 6),
)
