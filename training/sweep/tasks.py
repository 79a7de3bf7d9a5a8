"""The tasks of a sweep: cells to train, and the baseline."""

from __future__ import annotations

from training.configs import SweepConfig
from training.sweep.baseline import measure_baseline
from training.sweep.cell import train_cell
from training.sweep.grid import GridCell, grid_cells
from training.sweep.shared_inputs import shared_inputs

# A task is a cell to train, or None for measuring the baseline.
Task = GridCell | None


def run_task(config: SweepConfig, task: Task) -> str:
    """Do a task in this process, and return its status."""
    shared = shared_inputs(config)
    if task is None:
        measure_baseline(config, shared)
        return "ok"
    return train_cell(config, task, shared)


def run_named_task(config: SweepConfig, name: str | None) -> str:
    """Do the task of this name; ``None`` is the baseline.

    Cells are passed to other processes by name: the classes of their configurations are created at run time
    and cannot be pickled.
    """
    if name is None:
        return run_task(config, None)
    return run_task(config, next(cell for cell in grid_cells(config) if cell.name == name))
