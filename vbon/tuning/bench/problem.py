"""A problem of the bench: what is asked of a trial, and the exact figures of its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Exact figures of one point.

    Attributes:
        value: smaller is better.
        constraints: met where at most 0.
    """

    value: float
    constraints: dict[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """True if all constraints are met."""
        return all(value <= 0 for value in self.constraints.values())


@dataclass(frozen=True, slots=True)
class Instance:
    """The function of one seed.

    Attributes:
        best: the lowest value that meets the constraints.
        measure: the exact figures of parameters.
    """

    measure: Callable[[Params], Measurement]
    best: float


@dataclass(frozen=True, slots=True)
class Problem:
    """One function to minimise, or a family of them with one for each seed.

    Attributes:
        ask: asks a trial for its parameters.
        measure: the exact figures of parameters.
        best: the lowest value that meets the constraints.
        unmet: the regret of a study in which no point meets them.
        tolerance: the regret from which the problem counts as solved.
        noise: the standard deviation of the noise on the value.
        conditional: whether some parameters exist only where others have certain values.
        family: the function of a seed, if each seed has its own; ``measure`` and ``best`` are then those of
            seed 0.
    """

    name: str
    summary: str
    ask: Callable[[optuna.Trial], Params]
    measure: Callable[[Params], Measurement]
    best: float
    unmet: float
    tolerance: float
    noise: float = 0.0
    conditional: bool = False
    family: Callable[[int], Instance] | None = None

    def instance(self, seed: int) -> Instance:
        """The function that studies of a seed minimise."""
        if self.family is None:
            return Instance(self.measure, self.best)
        return self.family(seed)
