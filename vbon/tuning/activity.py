"""Conditions of parameters that only some trials have, learned from the trials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Condition:
    """A parameter is active where the category ``parent`` has one of the choices ``shown``."""

    parent: int
    shown: frozenset[float]


class Activity:
    """The conditions of parameters, for points that nobody has tried.

    Optuna's spaces are defined by running: nothing says when a parameter is asked for. A parameter that only
    some trials have is taken to depend on a category if the trials agree with that, the category that comes
    first if several do. Otherwise it is active where it was in the nearest trial. A wrong guess makes the
    model's picture of untried points less sharp; the parameters of finished trials are always right.

    Args:
        rows: the unit rows of finished trials, NaN where a trial lacks a parameter.
        choices: the number of choices of each parameter, 0 for a number.

    Attributes:
        groups: the conditional parameters, those together that were active in the same trials.
    """

    def __init__(self, rows: Float, choices: list[int]) -> None:
        self._rows, self._choices = rows, choices
        self._present = ~np.isnan(rows)
        always = self._present.all(axis=0)
        self._always = np.flatnonzero(always)
        # A parent comes before its children: it is present in more trials.
        conditional = sorted(
            np.flatnonzero(~always), key=lambda j: (-int(self._present[:, j].sum()), int(j))
        )
        self._conditions = {int(j): self._condition(int(j)) for j in conditional}
        groups: dict[bytes, list[int]] = {}
        for j in sorted(self._conditions):
            groups.setdefault(self._present[:, j].tobytes(), []).append(j)
        self.groups = list(groups.values())

    def masked(self, rows: Float) -> Float:
        """Unit rows with NaN for the parameters that are inactive."""
        rows = rows.copy()
        nearest: NDArray[np.intp] | None = None
        for j, condition in self._conditions.items():
            if condition is not None:
                active = np.isin(rows[:, condition.parent], list(condition.shown))
            else:
                nearest = self._nearest(rows) if nearest is None else nearest
                active = self._present[nearest, j]
            rows[~active, j] = np.nan
        return rows

    def _condition(self, j: int) -> _Condition | None:
        """The category that decides over parameter ``j``, if the trials agree on one."""
        present = self._present[:, j]
        for parent, choices in enumerate(self._choices):
            known = self._present[:, parent]
            if not choices or (present & ~known).any() or known.sum() <= present.sum():
                continue
            values = self._rows[:, parent]
            shown, hidden = frozenset(values[present]), values[~present]
            if shown and not np.isin(hidden, list(shown)).any():
                return _Condition(parent, shown)
        return None

    def _nearest(self, rows: Float) -> NDArray[np.intp]:
        """The trial that is nearest to each row in the parameters that all trials have."""
        gaps = np.abs(rows[:, None, self._always] - self._rows[None][:, :, self._always])
        is_choice = np.array([self._choices[j] > 0 for j in self._always], dtype=bool)
        gaps[:, :, is_choice] = gaps[:, :, is_choice] > 0
        return (gaps**2).sum(axis=2).argmin(axis=1)
