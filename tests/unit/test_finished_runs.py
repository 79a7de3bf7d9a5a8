"""Finished work is reused and other work redone: runs and sweeps around a stand-in for training."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.train

from safetensors.numpy import save_file  # noqa: E402

from training.configs import EvaluateConfig, SweepConfig, TrainConfig  # noqa: E402
from training.evaluation import evaluate  # noqa: E402
from training.evaluation.measure import PromptSamples  # noqa: E402
from training.evaluation.rows import evaluation_rows, policy_row  # noqa: E402
from training.sweep.run import run_sweep  # noqa: E402
from training.train import heldout, run  # noqa: E402
from training.train.config import train_config_type  # noqa: E402
from training.train.finished import FinishedRun  # noqa: E402
from training.train.inputs import TrainingInputs  # noqa: E402
from training.train.prepare import RunSpec  # noqa: E402
from training.train.resume import state_path  # noqa: E402
from training.train.run import train  # noqa: E402
from vbon.errors import CheckpointError, DataError, ExportError  # noqa: E402
from vbon.storage.checkpoints import write_checksums  # noqa: E402
from vbon.storage.training_record import ADAPTER_DIRECTORY, TRAINING_RECORD  # noqa: E402

KINDS = {"causal-lm": "LlamaForCausalLM", "reward": "BertForSequenceClassification"}
COST = {"samples_drawn": 1, "training_seconds": 1.0}


def write_model(directory: Path, kind: str = "causal-lm", weight: float = 0.0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [KINDS[kind]], "num_labels": 1}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    save_file({"w": np.full(4, weight, np.float32)}, directory / "model.safetensors")
    write_checksums(directory, kind)  # type: ignore[arg-type]


def write_adapter(directory: Path) -> None:
    directory.mkdir()
    (directory / "adapter_config.json").write_text("{}")
    save_file({"w": np.zeros(4, np.float32)}, directory / "adapter_model.safetensors")
    write_checksums(directory, "adapter")


def samples(count: int, mean: float) -> list[PromptSamples]:
    """The same samples for each of three prompts."""
    rewards = mean + np.linspace(-1, 1, count)
    zeros = np.zeros(count)
    return [PromptSamples(rewards, rewards, zeros, zeros, zeros, zeros + 5, 0)] * 3


class OneRow:
    def __len__(self) -> int:
        return 1

    def rewards(self, row: int) -> list[float]:
        return [0.0] * 8


class LightInputs(TrainingInputs):
    """Checks and fingerprints real files, but makes up the figures from the prompt file."""

    cache = OneRow()  # type: ignore[assignment]

    @property
    def reward(self) -> Any:
        return self._unloaded_reward

    @property
    def gold(self) -> Any:
        return self._unloaded_gold

    @property
    def heldout(self) -> Any:
        return [None] * 3 if self.config.heldout else []

    @property
    def heldout_reference(self) -> list[PromptSamples]:
        return samples(self.reference_samples, 0.0)

    @property
    def measurer(self) -> Any:
        return self

    def measure(
        self, policy: Any, prompts: Any, count: int, title: str, draw: str = ""
    ) -> list[PromptSamples]:
        assert self.config.heldout is not None
        return samples(count, float(self.config.heldout.read_text()))


class Desk:
    """A directory of models and data that counts trainings and repeated measurements."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained: list[str] = []
        self.loaded: list[str] = []
        write_model(folder / "policy")
        write_model(folder / "reward", "reward")
        write_model(folder / "gold", "reward")
        (folder / "cache.jsonl").write_text("a line")
        (folder / "heldout").write_text("0.5")

    @property
    def settings(self) -> dict[str, Any]:
        folder = self.folder
        return {
            "policy": str(folder / "policy"), "reward": str(folder / "reward"),
            "gold": str(folder / "gold"), "cache": folder / "cache.jsonl",
            "heldout": folder / "heldout",
        }  # fmt: skip

    def config(self, **changes: Any) -> TrainConfig:
        values = self.settings | {"out": self.folder / "vbon", "num_samples": 4} | changes
        return train_config_type("vbon")(**values)

    def inputs(self, config: TrainConfig) -> TrainingInputs:
        return LightInputs(config, 3, 16, 4)

    def train(self, **changes: Any) -> FinishedRun:
        config = self.config(**changes)
        return train("vbon", config, self.inputs(config))

    def sweep(self, **changes: Any) -> tuple[int, int]:
        """Run a sweep; returns the number of cells trained and of cells measured again."""
        values = self.settings | {
            "out": self.folder / "sweep", "seeds": [0], "grid": ["vbon: num_samples=2 4"],
            "reference_samples": 16, "policy_samples": 4,
        }  # fmt: skip
        before = len(self.trained), len(self.loaded)
        run_sweep(SweepConfig(**(values | changes)))
        return len(self.trained) - before[0], len(self.loaded) - before[1]

    def records(self) -> list[dict[str, Any]]:
        paths = sorted((self.folder / "sweep" / "cells").glob("*/record.json"))
        return [json.loads(path.read_text()) for path in paths]

    def baseline(self) -> dict[str, Any]:
        return json.loads((self.folder / "sweep" / "baseline.json").read_text())


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    made = Desk(tmp_path)

    def train_and_export(spec: RunSpec, on_measured: Any) -> FinishedRun:
        """Export at once, without training."""
        config, inputs = spec.config, spec.inputs
        made.trained.append(config.out.parent.name)
        ours = inputs.measure(None, None, inputs.policy_samples, spec.name)  # type: ignore[attr-defined]
        if on_measured is not None:
            on_measured(ours)
        row = policy_row(spec.name, ours, inputs.heldout_reference)
        shutil.rmtree(config.out, ignore_errors=True)
        config.out.mkdir(parents=True)
        record = {
            "config": config.model_dump(mode="json"),
            "identity": spec.identity,
            "cost": COST,
            "heldout": row.model_dump(),
        }
        (config.out / TRAINING_RECORD).write_text(json.dumps(record))
        write_model(config.out)
        if config.lora_rank is not None:
            write_adapter(config.out / ADAPTER_DIRECTORY)
        return FinishedRun(config.out, row, COST)

    def load(path: str, **kwargs: Any) -> tuple[None, None, None]:
        made.loaded.append(path)
        return None, None, None

    monkeypatch.setattr(run, "_train_and_export", train_and_export)
    monkeypatch.setattr(heldout, "load_policy", load)
    monkeypatch.setattr("training.train.inputs.TrainingInputs", LightInputs)
    return made


def test_a_finished_sweep_is_left_alone(desk: Desk) -> None:
    assert desk.sweep() == (2, 0)
    before = desk.records()
    assert desk.sweep() == (0, 0)
    assert desk.records() == before
    assert before[0]["identity"]["policy_revision"].startswith("sha256:")
    assert before[0]["measured_with"]["policy_samples"] == 4


def another_policy(desk: Desk) -> None:
    write_model(desk.folder / "policy", weight=1.0)


def another_reward(desk: Desk) -> None:
    write_model(desk.folder / "reward", "reward", weight=1.0)


def another_cache(desk: Desk) -> None:
    (desk.folder / "cache.jsonl").write_text("another line")


def another_gold(desk: Desk) -> None:
    write_model(desk.folder / "gold", "reward", weight=1.0)


def other_prompts(desk: Desk) -> None:
    (desk.folder / "heldout").write_text("0.7")


@pytest.mark.parametrize(
    ("change", "done", "baseline"),
    [(another_policy, (2, 0), True), (another_reward, (2, 0), True), (another_cache, (2, 0), False),
     (another_gold, (0, 2), True), (other_prompts, (0, 2), True)],
)  # fmt: skip
def test_other_content_at_the_same_path_is_noticed(
    desk: Desk, change: Callable[[Desk], None], done: tuple[int, int], baseline: bool
) -> None:
    """Cells are trained again, or only measured again if the change affects figures alone."""
    desk.sweep()
    path = desk.folder / "sweep" / "baseline.json"
    path.write_text(json.dumps({**desk.baseline(), "created": "before"}))
    change(desk)
    assert desk.sweep() == done
    assert (desk.baseline()["created"] != "before") is baseline
    assert desk.sweep() == (0, 0)


@pytest.mark.parametrize(
    "changes", [{"policy_samples": 8}, {"heldout_prompts": 2}, {"reference_samples": 32}]
)
def test_another_way_of_measuring_trains_nothing_again(desk: Desk, changes: dict[str, Any]) -> None:
    desk.sweep()
    assert desk.sweep(**changes) == (0, 2)
    assert all(record["measured_with"].items() >= changes.items() for record in desk.records())
    assert desk.sweep(**changes) == (0, 0)


@pytest.mark.parametrize("key", ["heldout", "gold"])
def test_a_record_has_the_figures_of_the_settings_it_names(desk: Desk, key: str) -> None:
    desk.sweep()
    (desk.folder / "others").write_text("0.9")
    write_model(desk.folder / "gold2", "reward", weight=1.0)
    other = {"heldout": desk.folder / "others", "gold": str(desk.folder / "gold2")}[key]
    assert desk.sweep(**{key: other}) == (0, 2)
    for record in desk.records():
        assert record["config"][key] == str(other)
        assert record["row"]["reward"]["mean"] == pytest.approx(0.9 if key == "heldout" else 0.5)
        assert record["best_of_tuned"]["n"] == 4


def test_without_its_record_a_trained_cell_is_measured_again(desk: Desk) -> None:
    """The sweep is killed between exporting a checkpoint and recording its cell."""
    desk.sweep()
    before = desk.records()
    for path in (desk.folder / "sweep" / "cells").glob("*/record.json"):
        path.unlink()
        state = state_path(path.parent / "checkpoint") / "step-000010"
        state.mkdir(parents=True)
    assert desk.sweep() == (0, 2)
    for new, old in zip(desk.records(), before, strict=True):
        assert new["best_of_tuned"] == old["best_of_tuned"] is not None
        assert new["row"] == old["row"]
    assert not list((desk.folder / "sweep").rglob("*.state"))


def test_a_record_that_does_not_say_what_it_is_of_is_no_longer_trusted(desk: Desk) -> None:
    desk.sweep()
    for path in (desk.folder / "sweep" / "cells").glob("*/record.json"):
        record = json.loads(path.read_text())
        del record["identity"], record["measured_with"]
        path.write_text(json.dumps(record))
    assert desk.sweep() == (0, 2)


def test_without_checkpoints_other_figures_need_another_training(desk: Desk) -> None:
    desk.sweep(keep_checkpoints=False)
    assert desk.sweep(keep_checkpoints=False) == (0, 0)
    assert desk.sweep(keep_checkpoints=False, policy_samples=8) == (2, 0)


def test_missing_prompts_are_named(desk: Desk) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        desk.sweep(heldout=desk.folder / "nowhere")


def write_state(out: Path, identity: Any) -> Path:
    state = state_path(out) / "step-000010"
    state.mkdir(parents=True)
    (state / "run.json").write_text(json.dumps({"identity": identity, "history": []}))
    return state_path(out)


def test_a_run_killed_after_its_export_leaves_nothing_beside_it(desk: Desk) -> None:
    out = desk.train().out
    left = write_state(out, json.loads((out / TRAINING_RECORD).read_text())["identity"])
    (left / ".step-000020.partial").mkdir()
    desk.train()
    assert desk.trained == [desk.folder.name]
    assert sorted(p.name for p in desk.folder.iterdir() if p.name.startswith(".")) == []


def test_states_of_an_unfinished_run_to_the_same_place_are_kept(desk: Desk) -> None:
    """A run with --replace and other settings is started, then killed."""
    state = write_state(desk.train().out, {"objective": "another"})
    desk.train()
    assert state.exists()


@pytest.mark.parametrize("key", ["heldout", "gold"])
def test_figures_of_other_prompts_are_said_to_be(
    desk: Desk, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    desk.train()
    with caplog.at_level(logging.WARNING):
        desk.train()
    assert caplog.text == ""
    before = str(desk.folder / key)
    (desk.folder / "others").write_text("0.9")
    write_model(desk.folder / "gold2", "reward")
    other = {"heldout": desk.folder / "others", "gold": str(desk.folder / "gold2")}[key]
    with caplog.at_level(logging.WARNING):
        desk.train(**{key: other})
    assert f"measured with {key} {before}" in caplog.text
    assert len(desk.trained) == 1


def test_a_damaged_adapter_is_named_or_trained_again(desk: Desk) -> None:
    out = desk.train(lora_rank=2).out
    file = out / ADAPTER_DIRECTORY / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors.*--replace"):
        desk.train(lora_rank=2)
    desk.train(lora_rank=2, replace=True)
    assert len(desk.trained) == 2
    shutil.rmtree(out / ADAPTER_DIRECTORY)
    with pytest.raises(CheckpointError, match=r"adapter.*does not exist"):
        desk.train(lora_rank=2)
    with pytest.raises(DataError, match=r"lora_rank: 2 -> 4"):
        desk.train(lora_rank=4)


@pytest.mark.parametrize("at", ["frontier.png", "frontier.svg", "evaluation.json"])
def test_an_evaluation_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The disk is full while one of the three files is written."""

    def draw(rows: Any, num_samples: int, directory: Path) -> None:
        for name in evaluate.PLOTS:
            write(directory / name, "drawn")

    def write(path: Path, text: Any) -> None:
        path.write_text("half")
        if path.name == failing:
            raise OSError(28, "No space left on device")
        path.write_text(str(text))

    monkeypatch.setattr("training.evaluation.plot.draw_frontier", draw)
    monkeypatch.setattr(evaluate, "write_json", write)
    config = EvaluateConfig(out=tmp_path / "evaluation")
    rows = evaluate.Evaluation(evaluation_rows(samples(40, 0.0), {}, 16), 3, None)
    failing = ""
    evaluate._write_results(config, {"config": {}, "of": "old"}, rows, None)
    before = {path.name: path.read_text() for path in config.out.iterdir()}
    assert before.keys() == {"evaluation.json", "frontier.png", "frontier.svg"}
    failing = at
    with pytest.raises((ExportError, OSError), match="No space left"):
        evaluate._write_results(config, {"config": {}, "of": "new"}, rows, None)
    assert {path.name: path.read_text() for path in config.out.iterdir()} == before
    failing = ""
    evaluate._write_results(config, {"config": {}, "of": "new"}, rows, None)
    assert {path.name for path in config.out.iterdir()} == before.keys()
    assert "'of': 'new'" in (config.out / "evaluation.json").read_text()


@pytest.mark.parametrize("name", ["reference", "best-of-n", "reward", "gold"])
def test_a_checkpoint_takes_no_name_of_the_evaluation(name: str) -> None:
    with pytest.raises(ValueError, match=f"checkpoints\n.*{name} already names a part"):
        EvaluateConfig(checkpoints={"vbon": "x", name: "y"})


def test_a_cell_records_its_figures_of_every_prompt(desk: Desk) -> None:
    desk.sweep()
    for record in desk.records():
        for field, values in record["per_prompt"].items():
            assert len(values) == 3
            assert np.mean(values) == pytest.approx(record["row"][field]["mean"])
        assert set(record["per_prompt"]) == {
            "kl_nats", "win_rate", "reward", "gold", "gold_win_rate",
        }  # fmt: skip
