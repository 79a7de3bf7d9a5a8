"""Sweep grids: the cells an entry gives, and the entries that are rejected."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from training.configs import SweepConfig
from training.objectives import DEFAULT_GRID, OBJECTIVES, objective_type
from training.objectives.protocol import SamplesNeeded
from training.sweep.grid import grid_cells
from training.train.config import objective_of, train_config_type
from vbon.errors import InvalidInputError


def sweep(*grid: str, **changes: object) -> SweepConfig:
    return SweepConfig(grid=list(grid), **changes)  # type: ignore[arg-type]


def test_an_entry_gives_a_cell_a_value_and_seed() -> None:
    made = grid_cells(sweep("vbon: num_samples=2 16", seeds=[0, 7], out=Path("s")))
    assert [(c.value, c.seed) for c in made] == [(2, 0), (16, 0), (2, 7), (16, 7)]
    assert made[1].config.num_samples == 16  # type: ignore[attr-defined]
    assert made[3].directory == Path("s/cells/vbon-num_samples=16-seed=7")
    assert made[3].config.seed == 7


def test_a_variant_names_its_objective_and_settings() -> None:
    (cell,) = grid_cells(
        sweep("vbon, l1=vbon: num_samples=4; bound=l1; learning_rate=3e-4", seeds=[0])
    )
    assert (cell.variant, cell.objective) == ("vbon, l1", "vbon")
    assert cell.config.bound == "l1"  # type: ignore[attr-defined]
    assert cell.config.learning_rate == 3e-4


def test_several_settings_give_every_combination() -> None:
    made = grid_cells(
        sweep("vbon: num_samples=4 16; learning_rate=1e-4, 3e-4; bound=exact", seeds=[5])
    )
    assert [(c.config.num_samples, c.config.learning_rate) for c in made] == [  # type: ignore[attr-defined]
        (4, 1e-4), (4, 3e-4), (16, 1e-4), (16, 3e-4),
    ]  # fmt: skip
    assert made[1].setting == "num_samples=4, learning_rate=0.0003"
    assert made[1].name == "vbon-num_samples=4_learning_rate=3e-4-seed=5"
    assert {cell.config.bound for cell in made} == {"exact"}  # type: ignore[attr-defined]


def test_settings_of_the_sweep_reach_every_cell_and_an_entrys_own_win() -> None:
    first, second = grid_cells(
        sweep("dpo: beta=0.1", "bonbon: num_samples=4; learning_rate=1e-3", seeds=[0],
              learning_rate=5e-5, prompts_per_step=8)
    )  # fmt: skip
    assert (first.config.learning_rate, second.config.learning_rate) == (5e-5, 1e-3)
    assert first.config.prompts_per_step == second.config.prompts_per_step == 8


def test_all_cells_train_on_equally_many_sequences_whatever_their_defaults() -> None:
    cells = grid_cells(sweep(*DEFAULT_GRID, seeds=[0]))
    sizes = {(one.config.prompts_per_step, one.config.samples_per_prompt) for one in cells}
    assert sizes == {(32, 8)}
    assert (
        train_config_type("vbon")().prompts_per_step == 8
    )  # trained alone, it has its own default


def test_a_grid_can_ask_for_the_estimator_without_cached_samples() -> None:
    (cell,) = grid_cells(
        sweep(
            "vbon: num_samples=4; cached_weight=0; floor_nats=none; kl_estimator=exact", seeds=[0]
        )
    )
    objective = objective_of("vbon", cell.config)
    assert objective.samples_needed == SamplesNeeded(policy=True)
    assert objective.model_dump()["floor_nats"] is None


def test_a_warm_start_is_paid_from_the_same_budget_of_steps() -> None:
    warm, cold = grid_cells(
        sweep("w=vbon: num_samples=4; warm_start_steps=15", "vbon: num_samples=4; warm_start_steps=0",
              seeds=[0], steps=40)
    )  # fmt: skip
    assert (warm.config.warm_start_steps, warm.config.steps) == (15, 25)
    assert (cold.config.warm_start_steps, cold.config.steps) == (0, 40)


def test_a_default_warm_start_keeps_its_share_of_fewer_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defaults = {"warm_start_steps": 40, "steps": 30}
    monkeypatch.setattr(objective_type("vbon"), "defaults", defaults)
    (cell,) = grid_cells(sweep("vbon: num_samples=4", seeds=[0], steps=35))
    assert (cell.config.warm_start_steps, cell.config.steps) == (20, 15)


def test_the_default_grid_has_every_objective_equally_often() -> None:
    """A search on validation prompts refuses methods with different numbers of settings."""
    cells = grid_cells(sweep(*DEFAULT_GRID, seeds=[0]))
    assert Counter(cell.objective for cell in cells) == dict.fromkeys(OBJECTIVES.built_in, 4)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("vbon", "must have the form .NAME"),
        ("vbon: num_samples", "must have the form .NAME"),
        ("nothing: beta=1", "unknown objective 'nothing'; choose one of vbon"),
        ("vbon: beta=1", "vbon has no setting beta"),
        ("vbon: num_samples=4; tea=1", "vbon has no setting tea"),
        ("vbon: num_samples=4; bound", "must have the form SETTING=VALUE"),
        ("vbon: num_samples=1", "at least 2, got 1"),
        ("dpo: beta=-1", "greater than 0"),
        ("vbon: num_samples=4; warm_start_steps=40", "steps"),
    ],
)
def test_a_bad_entry_is_named(entry: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        grid_cells(sweep(entry, steps=40))


def test_two_cells_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="twice; give the variants different names"):
        grid_cells(sweep("dpo: beta=0.1 0.3", "dpo: beta=0.3; num_samples=8"))
