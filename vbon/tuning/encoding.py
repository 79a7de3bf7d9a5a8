"""Search spaces of Optuna as vectors: log scales, steps, categories and conditional parameters.

Two forms are used. A *unit row* has one number per parameter: its position in [0, 1] on its scale, the
index of its choice, or NaN where the parameter is inactive. A *feature row* is what a model reads: numbers
as they are, a choice as its indicator divided by sqrt 2, so that two choices are at distance 1. An inactive
parameter has its middle value, and a flag per group of conditional parameters says whether they are active.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from vbon.tuning.activity import Activity

Float = NDArray[np.float64]

_SMALLEST = 1e-300  # of which a logarithm is taken


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter: its scale, and the columns of features that it takes.

    Attributes:
        choices: the number of choices of a categorical parameter, 0 for a number.
        levels: the number of values of a number with steps, 0 for a continuous one.
        columns: the feature columns from ``start`` to ``stop``.
    """

    name: str
    distribution: BaseDistribution
    choices: int
    levels: int
    start: int
    stop: int

    def unit(self, value: Any) -> float:
        """The position or index of a value."""
        spread = self.distribution
        if isinstance(spread, CategoricalDistribution):
            return spread.to_internal_repr(value)
        assert isinstance(spread, FloatDistribution | IntDistribution)
        low, high, value = (self._scaled(x) for x in (spread.low, spread.high, value))
        return (value - low) / (high - low)

    def value(self, unit: float) -> Any:
        """The value at a position or index, rounded to a step and within the limits."""
        spread = self.distribution
        if isinstance(spread, CategoricalDistribution):
            return spread.to_external_repr(round(unit))
        assert isinstance(spread, FloatDistribution | IntDistribution)
        low, high = self._scaled(spread.low), self._scaled(spread.high)
        value = low + min(max(unit, 0.0), 1.0) * (high - low)
        value = math.exp(value) if spread.log else value
        if self.levels:
            step = spread.step or 1
            value = spread.low + step * round((value - spread.low) / step)
        value = min(max(value, spread.low), spread.high)
        return int(value) if isinstance(spread, IntDistribution) else float(value)

    def snapped(self, units: Float) -> Float:
        """The nearest positions that a parameter with steps can have."""
        if not self.levels or self.choices:
            return units
        return np.array([u if math.isnan(u) else self.unit(self.value(u)) for u in units])

    def drawn(self, rng: np.random.Generator, count: int) -> Float:
        """Uniform positions; each choice and each value of a linear scale is equally likely."""
        if self.choices:
            return rng.integers(self.choices, size=count).astype(np.float64)
        if not self.levels:
            return rng.random(count)
        return self.stratified(rng.random(count))

    def stratified(self, quantiles: Float) -> Float:
        """The positions at quantiles of the uniform draw."""
        if self.choices:
            return np.minimum(np.floor(quantiles * self.choices), self.choices - 1)
        if not self.levels:
            return quantiles
        spread = self.distribution
        assert isinstance(spread, FloatDistribution | IntDistribution)
        half = (spread.step or 1) / 2
        low, high = self._scaled(spread.low - half), self._scaled(spread.high + half)
        values = low + quantiles * (high - low)
        values = np.exp(values) if spread.log else values
        return np.array([self.unit(self._rounded(v)) for v in values])

    def grid(self) -> Float:
        """All positions of a parameter with choices or steps."""
        if self.choices:
            return np.arange(self.choices, dtype=np.float64)
        spread = self.distribution
        assert isinstance(spread, FloatDistribution | IntDistribution)
        step = spread.step or 1
        return np.array([self.unit(spread.low + step * k) for k in range(self.levels)])

    def _rounded(self, value: float) -> float:
        spread = self.distribution
        assert isinstance(spread, FloatDistribution | IntDistribution)
        step = spread.step or 1
        value = spread.low + step * round((value - spread.low) / step)
        return min(max(value, spread.low), spread.high)

    def _scaled(self, value: float) -> float:
        spread = self.distribution
        assert isinstance(spread, FloatDistribution | IntDistribution)
        return math.log(max(value, _SMALLEST)) if spread.log else float(value)


def axis_of(name: str, distribution: BaseDistribution, start: int = 0) -> Axis:
    """The axis of a parameter whose features begin at the column ``start``."""
    if isinstance(distribution, CategoricalDistribution):
        choices = len(distribution.choices)
        return Axis(name, distribution, choices, choices, start, start + choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    levels = 0
    if distribution.step is not None:
        levels = round((distribution.high - distribution.low) / distribution.step) + 1
    return Axis(name, distribution, 0, levels, start, start + 1)


class Space:
    """A search space and the conditions of its parameters, learned from finished trials.

    Args:
        distributions: the parameters that have more than one value.
        trials: finished trials, which show when a conditional parameter is active.

    Attributes:
        width: the number of feature columns.
        groups: the group of each feature column, one per parameter and per flag.
        numbers: the unit column of each parameter that is a number, by its feature column.
    """

    def __init__(
        self, distributions: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial]
    ) -> None:
        self.axes: list[Axis] = []
        for name, distribution in distributions.items():
            start = self.axes[-1].stop if self.axes else 0
            self.axes.append(axis_of(name, distribution, start))
        values = self.axes[-1].stop if self.axes else 0
        units = np.array([self.unit_row(trial.params) for trial in trials])
        self.activity = Activity(
            units.reshape(len(trials), len(self.axes)), [axis.choices for axis in self.axes]
        )
        self.width = values + len(self.activity.groups)
        self.groups = np.repeat(
            np.arange(len(self.axes) + len(self.activity.groups)),
            [axis.stop - axis.start for axis in self.axes] + [1] * len(self.activity.groups),
        )
        self.numbers = {axis.start: i for i, axis in enumerate(self.axes) if not axis.choices}

    @property
    def size(self) -> float:
        """The number of points, infinite if a parameter is continuous."""
        return math.prod(float(axis.levels) if axis.levels else math.inf for axis in self.axes)

    def unit_row(self, params: Mapping[str, Any]) -> Float:
        """The unit row of a trial's parameters; those that it lacks are NaN."""
        return np.array(
            [axis.unit(params[axis.name]) if axis.name in params else np.nan for axis in self.axes]
        )

    def params(self, row: Float) -> dict[str, Any]:
        """The parameters of a unit row; inactive ones, which are NaN, are left out."""
        return {
            axis.name: axis.value(float(unit))
            for axis, unit in zip(self.axes, row, strict=True)
            if not math.isnan(unit)
        }

    def draw(self, rng: np.random.Generator, count: int) -> Float:
        """Random unit rows, with inactive parameters as NaN."""
        rows = np.column_stack([axis.drawn(rng, count) for axis in self.axes])
        return self.activity.masked(rows)

    def all_points(self) -> Float:
        """Every unit row of a space without continuous parameters; equal rows are merged."""
        mesh = np.meshgrid(*(axis.grid() for axis in self.axes), indexing="ij")
        rows = self.activity.masked(np.column_stack([column.ravel() for column in mesh]))
        kept = np.unique(np.nan_to_num(rows, nan=-1.0), axis=0, return_index=True)[1]
        return rows[np.sort(kept)]

    def snap(self, rows: Float) -> Float:
        """Unit rows with parameters with steps at their nearest value."""
        return np.column_stack([axis.snapped(rows[:, i]) for i, axis in enumerate(self.axes)])

    def features(self, rows: Float) -> Float:
        """The feature rows of unit rows."""
        found = np.empty((len(rows), self.width))
        active = ~np.isnan(rows)
        for i, axis in enumerate(self.axes):
            if axis.choices:
                chosen = rows[:, i, None] == np.arange(axis.choices)
                block = np.where(active[:, i, None], chosen, 1 / axis.choices)
                found[:, axis.start : axis.stop] = block / math.sqrt(2)
            else:
                found[:, axis.start] = np.where(active[:, i], rows[:, i], 0.5)
        values = self.axes[-1].stop if self.axes else 0
        for k, group in enumerate(self.activity.groups):
            found[:, values + k] = active[:, group[0]]
        return found
