"""Searches: settings are chosen on prompts of their own, on equal terms, and once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from training.configs import SweepConfig
from training.sweep import run, tasks
from training.sweep.cell import CELL_RECORD, CellStatus, reads_cache
from training.sweep.grid import GridCell, grid_cells
from training.sweep.run import run_sweep
from training.sweep.search import CHOICES, read_choices
from vbon.errors import DataError, InvalidInputError
from vbon.maths.distribution import kl_upper_bound
from vbon.prompts import Prompt
from vbon.storage.atomic import write_json

pytestmark = pytest.mark.train

TWO_METHODS = ["vbon: num_samples=4 8 16", "kl-rl: beta=1 2 4"]


class PromptCache:
    """A reward cache of prompts alone."""

    def __init__(self, *prompts: str) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def prompt(self, row: int) -> Prompt:
        return Prompt(self._prompts[row])


class Bench:
    """Runs sweeps whose cells get the KL and win rate that a table gives to their settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, tuple[float, float] | None] = {}
        self.trained: list[tuple[str, str, int]] = []
        self.cache = PromptCache("train 1", "train 2")
        (folder / "validation").write_text("validation 1\nvalidation 2\n")
        (folder / "heldout").write_text("test 1\ntest 2\n")

    def sweep(self, **changes: Any) -> None:
        values = {
            "out": self.folder / "sweep", "validation": self.folder / "validation", "seeds": [0, 1],
            "heldout": self.folder / "heldout", "grid": TWO_METHODS, "gold": "gold",
        }  # fmt: skip
        run_sweep(SweepConfig(**(values | changes)))

    def train(self, config: SweepConfig, cell: GridCell, shared: Any) -> CellStatus:
        assert config.heldout is not None
        self.trained.append((config.heldout.name, cell.setting, cell.seed))
        place = self.places.get(cell.setting, (0.5, 0.6))
        row = None
        if place is not None:
            kl, win = ({"mean": v, "low": v, "high": v, "count": 2} for v in place)
            row = {"kl_nats": kl, "win_rate": win}
        status: CellStatus = "diverged" if place is None else "ok"
        record = {"status": status, "row": row, "cost": {"samples_drawn": 8}}
        write_json(cell.directory / CELL_RECORD, record)
        return status

    def chosen(self) -> dict[tuple[str, int], tuple[str | None, bool]]:
        choices = read_choices(self.folder / "sweep" / CHOICES)
        return {(c.method, c.target): (c.setting, c.within_budget) for c in choices.chosen}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setattr(tasks, "train_cell", made.train)
    monkeypatch.setattr(run, "cell_is_current", lambda *args: False)
    monkeypatch.setattr(run, "baseline_is_current", lambda *args: True)
    shared = SimpleNamespace(training=SimpleNamespace(cache=made.cache))
    for module in (run, tasks):
        monkeypatch.setattr(module, "shared_inputs", lambda config: shared)
    return made


def test_the_best_setting_within_each_budget_is_trained_again_and_reported(bench: Bench) -> None:
    """Best-of-4's bound is .636 nats, best-of-16's 1.835."""
    assert [round(kl_upper_bound(n), 3) for n in (4, 16)] == [0.636, 1.835]
    bench.places = {
        "num_samples=4": (0.6, 0.70), "num_samples=8": (0.64, 0.75), "num_samples=16": (1.8, 0.74),
        "beta=1": (3.0, 0.9), "beta=2": (2.0, 0.8), "beta=4": None,
    }  # fmt: skip
    bench.sweep()
    assert bench.chosen() == {
        ("vbon", 4): ("num_samples=4", True), ("vbon", 16): ("num_samples=8", True),
        ("kl-rl", 4): ("beta=2", False), ("kl-rl", 16): ("beta=2", False),
    }  # fmt: skip
    searched = [one for one in bench.trained if one[0] == "validation"]
    assert searched == [
        ("validation", setting, 1000)
        for setting in ("num_samples=4", "num_samples=8", "num_samples=16", "beta=1", "beta=2", "beta=4")
    ]  # fmt: skip
    assert bench.trained[6:] == [
        ("heldout", setting, seed)
        for seed in (0, 1)
        for setting in ("num_samples=4", "num_samples=8", "beta=2")
    ]


def test_a_method_that_always_diverges_is_chosen_nowhere(bench: Bench) -> None:
    bench.places = {f"beta={beta}": None for beta in (1, 2, 4)}
    bench.sweep()
    assert bench.chosen()["kl-rl", 4] == bench.chosen()["kl-rl", 16] == (None, False)
    assert {s for where, s, _ in bench.trained if where == "heldout"} == {"num_samples=4"}


@pytest.mark.parametrize("grid", [[*TWO_METHODS[:1], "kl-rl: beta=1 2"],
                                  ["vbon: num_samples=4 16; learning_rate=1e-4 3e-4", TWO_METHODS[1]],
                                  [*TWO_METHODS, "vbon: learning_rate=1e-5"]])  # fmt: skip
def test_unequal_searches_are_refused_before_any_training(bench: Bench, grid: list[str]) -> None:
    with pytest.raises(InvalidInputError, match="different numbers of settings to try"):
        bench.sweep(grid=grid)
    assert bench.trained == []


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [("validation", "test 2", "choose settings on .* and to report on"),
     ("validation", "train 1", "train on and to choose settings on"),
     ("heldout", "train 2", "train on and to report on")],
)  # fmt: skip
def test_a_prompt_has_one_role(bench: Bench, name: str, text: str, says: str) -> None:
    (bench.folder / name).write_text(f"another\n{text}\n")
    with pytest.raises(DataError, match=f"1 prompts, '{text}' among them, are both to .*{says}"):
        bench.sweep()
    assert bench.trained == []


def test_a_second_choice_on_the_same_test_prompts_is_refused(bench: Bench) -> None:
    bench.sweep()
    bench.sweep(seeds=[0, 1, 2])  # the same choice; one seed more
    bench.places["num_samples=16"] = (0.1, 0.9)
    with pytest.raises(DataError, match="holds choices of another search"):
        bench.sweep()
    bench.sweep(replace=True)
    assert bench.chosen()["vbon", 4] == ("num_samples=16", True)


def test_choices_of_another_sweep_need_no_search(bench: Bench) -> None:
    bench.sweep()
    before, bench.trained = bench.chosen(), []
    other = bench.folder / "other"
    bench.sweep(out=other, validation=None, choices=bench.folder / "sweep" / CHOICES)
    assert {where for where, _, _ in bench.trained} == {"heldout"}
    assert len(bench.trained) == 2 * len({setting for setting, _ in before.values()})
    assert read_choices(other / CHOICES) == read_choices(bench.folder / "sweep" / CHOICES)
    with pytest.raises(DataError, match="not in the grid"):
        bench.sweep(out=other, validation=None, choices=other / CHOICES, grid=["dpo: beta=1"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"search_seed": 1}, "search_seed 1 is one of the seeds"), ({"targets": [1]}, "at least 2"),
     ({"choices": Path("c")}, "give only one")],
)  # fmt: skip
def test_a_search_that_reuses_what_it_reports_is_refused(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        SweepConfig(validation=Path("v"), seeds=[0, 1], **changes)


def test_damaged_choices_are_named(tmp_path: Path) -> None:
    path = tmp_path / CHOICES
    with pytest.raises(DataError, match=r"cannot read .*choices\.json"):
        read_choices(path)
    path.write_text(json.dumps({"tried": []}))
    with pytest.raises(DataError, match=r"choices\.json: validation: "):
        read_choices(path)


def test_updates_are_counted_and_not_steps() -> None:
    """Three steps of imitation with one update each, and two of WIND with four."""
    from training.objectives.wind import Wind
    from training.train.export import run_cost

    names = ("samples_drawn", "tokens_drawn", "sequences_trained", "sample_s", "score_s", "learn_s")
    row = dict.fromkeys(names, 1.0)
    history = [{"phase": phase, **row} for phase in ["warm-start"] * 3 + ["main"] * 2]
    accelerator = SimpleNamespace(num_processes=1)
    active = SimpleNamespace(
        history=history, spec=SimpleNamespace(objective=Wind(beta=0.1, updates=4)),
        trainer=SimpleNamespace(accelerator=accelerator),
    )  # fmt: skip
    cost = run_cost(active)  # type: ignore[arg-type]
    assert (cost["steps"], cost["optimizer_updates"]) == (5, 11)


@pytest.mark.parametrize(("grid", "reads"), [
    ("kl-rl: beta=1", False), ("bon-aware-rl: beta=1", False), ("dpo: beta=1", True),
    ("kl-rl: beta=1; transform=log", True),  # ranks among cached rewards
    ("vbon: num_samples=4; warm_start_steps=0", True),
    ("kl-rl: beta=1; warm_start_steps=5", True),  # its first steps imitate cached samples
])  # fmt: skip
def test_cached_samples_count_where_they_are_read(grid: str, reads: bool) -> None:
    (cell,) = grid_cells(SweepConfig(grid=[grid], seeds=[0], steps=20))
    assert reads_cache(cell) is reads
