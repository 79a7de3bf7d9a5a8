"""Groups the cells of one or several sweeps by method: over seeds, and over sandboxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.sweep.records import CellRecord, Sweep

# The method, with its setting in a plain sweep or its target after a search.
_Key = tuple[str, str | int]


@dataclass(frozen=True, slots=True)
class CellGroup:
    """The measured cells of a method with one setting, or with the setting chosen for one target.

    Attributes:
        setting: the varied settings as text; several, if sandboxes chose differently.
        target: the N that was imitated, or for whose KL the setting was chosen.
        cells: the cells of each sandbox, ordered by seed.
    """

    method: str
    setting: str
    target: int | None
    cells: tuple[tuple[CellRecord, ...], ...]

    @property
    def seeds(self) -> int:
        """The number of cells: training seeds, over all sandboxes."""
        return sum(len(of_sandbox) for of_sandbox in self.cells)

    def prompt_figures(self, *fields: str) -> list[NDArray[np.float64]] | None:
        """The fields' figures of each prompt, ``(F, S, P)`` of each sandbox.

        ``None`` if some record lacks them, as older ones do.
        """
        found = []
        for of_sandbox in self.cells:
            lengths = {
                len(cell.per_prompt.get(field, ())) for cell in of_sandbox for field in fields
            }
            if len(lengths) != 1 or lengths == {0}:
                return None
            found.append(
                np.array([[cell.per_prompt[field] for cell in of_sandbox] for field in fields])
            )
        return found


def groups_of(sweeps: Sequence[Sweep]) -> list[CellGroup]:
    """The groups that have measured cells in every sweep; each sweep is one sandbox."""
    by_sweep = [_cells_by_key(sweep) for sweep in sweeps]
    groups = []
    for key in by_sweep[0]:
        if all(key in found for found in by_sweep):
            cells = tuple(tuple(found[key]) for found in by_sweep)
            settings = dict.fromkeys(c.setting for of_sandbox in cells for c in of_sandbox)
            groups.append(CellGroup(key[0], " | ".join(settings), _target(key, cells), cells))
    return groups


def _cells_by_key(sweep: Sweep) -> dict[_Key, list[CellRecord]]:
    found: dict[_Key, list[CellRecord]] = defaultdict(list)
    for cell in sweep.measured.values():
        if sweep.choices is None:
            found[cell.method, cell.setting].append(cell)
            continue
        for target in sweep.choices.targets_of(cell.method, cell.setting):
            found[cell.method, target].append(cell)
    return found


def _target(key: _Key, cells: Sequence[Sequence[CellRecord]]) -> int | None:
    return key[1] if isinstance(key[1], int) else cells[0][0].target
