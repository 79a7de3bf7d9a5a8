"""The best point of a mixed space under sampled functions of its features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from vbon.tuning.encoding import Space

Float = NDArray[np.float64]
# Values of a sampled function at feature rows (n, width), shape (n,); differentiable.
Sampled = Callable[[torch.Tensor], torch.Tensor]

_NEAR = 20  # perturbed copies of each anchor
_SWEEPS = 3  # over the neighbours of the best point


@dataclass(frozen=True, slots=True)
class Goal:
    """One sampled function for the objective, and one with its limit for each constraint."""

    objective: Sampled
    constraints: Sequence[tuple[Sampled, float]] = ()

    def measure(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The objective and the total violation of the constraints, in standard deviations."""
        violation = x.new_zeros(len(x))
        for function, limit in self.constraints:
            violation = violation + torch.relu(limit - function(x))
        return self.objective(x), violation


@dataclass(frozen=True, slots=True)
class SearchSize:
    """The effort of one search.

    Attributes:
        pool: random points that are tried, and the size up to which a finite space is tried in full.
        refined: the best of them whose numbers are improved by L-BFGS-B.
    """

    pool: int = 1000
    refined: int = 5


SEARCH_SIZE = SearchSize()


def best_point(
    space: Space,
    goal: Goal,
    rng: np.random.Generator,
    anchors: Float,
    size: SearchSize = SEARCH_SIZE,
) -> Float:
    """The unit row with the highest objective among those that violate nothing, or the least violation.

    Args:
        anchors: unit rows of good trials, near which points are tried too.
    """
    if space.size <= size.pool:
        rows = space.all_points()
        return rows[_order(*_values(space, goal, rows))[0]]
    rows = np.vstack([space.draw(rng, size.pool), _near(space, anchors, rng), anchors])
    objective, violation = _values(space, goal, rows)
    order = _order(objective, violation)[: size.refined]
    refined = space.snap(_refine(space, goal, rows[order], float(objective.std())))
    best = _better(space, goal, np.vstack([rows[order], refined]))
    for _ in range(_SWEEPS):
        neighbours = _neighbours(space, best)
        if not len(neighbours):
            break
        found = _better(space, goal, np.vstack([best[None], neighbours]))
        if np.array_equal(found, best, equal_nan=True):
            break
        best = found
    return best


def _values(space: Space, goal: Goal, rows: Float) -> tuple[Float, Float]:
    with torch.no_grad():
        objective, violation = goal.measure(torch.from_numpy(space.features(rows)))
    return objective.numpy(), violation.numpy()


def _order(objective: Float, violation: Float) -> NDArray[np.intp]:
    """Indices from the best point to the worst."""
    return np.lexsort((-objective, violation))


def _better(space: Space, goal: Goal, rows: Float) -> Float:
    return rows[_order(*_values(space, goal, rows))[0]]


def _near(space: Space, anchors: Float, rng: np.random.Generator) -> Float:
    """Anchors with numbers moved by a little, from .001 to .2, and a fifth of the categories drawn again."""
    rows = np.repeat(anchors, _NEAR, axis=0)
    fresh = space.draw(rng, len(rows))
    scales = 10 ** rng.uniform(-3, np.log10(0.2), size=(len(rows), 1))
    moved = np.clip(rows + scales * rng.standard_normal(rows.shape), 0, 1)
    for i, axis in enumerate(space.axes):
        if axis.choices:
            moved[:, i] = np.where(rng.random(len(rows)) < 0.2, fresh[:, i], rows[:, i])
        # A category drawn again may make parameters active that the anchor lacks.
        moved[:, i] = np.where(np.isnan(moved[:, i]), axis.drawn(rng, len(rows)), moved[:, i])
    return space.activity.masked(space.snap(moved))


def _refine(space: Space, goal: Goal, rows: Float, spread: float) -> Float:
    """Rows with their numbers moved uphill; violations cost ten standard deviations of the objective each."""
    free = [(i, column) for column, i in space.numbers.items()]
    if not free:
        return rows
    units, columns = [i for i, _ in free], [column for _, column in free]
    active = ~np.isnan(rows[:, units])
    start = torch.from_numpy(space.features(rows))
    price = 10 * max(spread, 1e-9)

    def loss(flat: Float) -> tuple[float, Float]:
        moved = torch.from_numpy(flat.reshape(active.shape)).requires_grad_()
        x = start.clone()
        x[:, columns] = torch.where(torch.from_numpy(active), moved, x[:, columns])
        objective, violation = goal.measure(x)
        total = (price * violation - objective).sum()
        (slope,) = torch.autograd.grad(total, moved)
        return float(total.detach()), slope.numpy().ravel()

    begin = np.where(active, rows[:, units], 0.5).ravel()
    found = minimize(
        loss, begin, jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * begin.size,
        options={"maxiter": 40},
    ).x.reshape(active.shape)  # fmt: skip
    refined = rows.copy()
    refined[:, units] = np.where(active, found, np.nan)
    return refined


def _neighbours(space: Space, row: Float) -> Float:
    """Points that differ in one parameter with choices or steps: any other choice, one step up or down."""
    found = []
    for i, axis in enumerate(space.axes):
        if np.isnan(row[i]) or not axis.levels:
            continue
        grid = axis.grid() if axis.choices or axis.levels <= 64 else np.array([])
        if not axis.choices and len(grid):
            here = int(np.abs(grid - row[i]).argmin())
            grid = grid[max(here - 1, 0) : here + 2]
        for unit in grid:
            if unit != row[i]:
                changed = row.copy()
                changed[i] = unit
                found.append(changed)
    if not found:
        return np.empty((0, len(row)))
    rows = np.array(found)
    # Another category may switch parameters on; they start in the middle.
    for i, axis in enumerate(space.axes):
        middle = 0.0 if axis.choices else 0.5
        rows[:, i] = np.where(np.isnan(rows[:, i]), middle, rows[:, i])
    return space.activity.masked(space.snap(rows))
