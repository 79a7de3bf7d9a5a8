"""The seeds of held-out samples: the same for the same run, others for every other one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from training.configs import TrainConfig
from training.evaluation.measure import Measurer
from training.train import heldout, run
from training.train.prepare import _trainer
from vbon import work_report
from vbon.errors import DataError
from vbon.prompts import Prompt
from vbon.study.time_left import Paces, Span
from vbon.work_report import FILE_ENV, MEASURED_ANSWERS, ReadingsFile

pytestmark = pytest.mark.train


def test_every_training_seed_and_setting_has_held_out_samples_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[int] = []

    def measure_batch(
        self: Measurer, policy: Any, part: Any, count: int, seeds: list[int], skip: int
    ) -> Any:
        used.extend(seeds)
        return [None]

    monkeypatch.setattr(Measurer, "_measure_batch", measure_batch)
    monkeypatch.setattr(heldout, "policy_row", lambda *args: None)
    inputs = SimpleNamespace(
        heldout_reference=[], heldout=[(Prompt("a"), [1])], policy_samples=2,
        measurer=Measurer(None, None, None, None, 8, 1.0, 512, 1),  # type: ignore[arg-type]
    )  # fmt: skip
    identities: list[dict[str, Any]] = [
        {"objective": "vbon", "seed": 0, "num_samples": 4},
        {"objective": "vbon", "seed": 1, "num_samples": 4},
        {"objective": "vbon", "seed": 0, "num_samples": 16},
        {"num_samples": 4, "seed": 0, "objective": "vbon"},  # the first run again
        {
            "num_samples": 4,
            "seed": 0,
            "objective": "vbon",
            "policy": "moved",
        },  # from another folder
    ]
    for identity in identities:
        heldout.measure_heldout("vbon", None, inputs, None, identity)  # type: ignore[arg-type]
    assert len(set(used[:3])) == 3
    assert used[3] == used[4] == used[0]


def test_prompts_that_cannot_be_read_fail_before_the_training() -> None:
    """They are needed only at its end, hours later."""
    made: list[str] = []

    class Inputs:
        reward = None

        @property
        def heldout(self) -> list[Any]:
            raise DataError("prompt file heldout.jsonl does not exist")

        def fresh_policy(self) -> None:
            made.append("a policy")

    spec = SimpleNamespace(config=TrainConfig(), inputs=Inputs())
    with pytest.raises(DataError, match="does not exist"):
        _trainer(spec, None)  # type: ignore[arg-type]
    assert made == []


def test_steps_and_held_out_answers_are_foreseen_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program that knows the pace of answers only would take them for all of the training."""
    spec = SimpleNamespace(
        objective=SimpleNamespace(
            title="vbon", label="8", samples_needed=SimpleNamespace(policy=1)
        ),
        config=SimpleNamespace(steps=60, warm_start_steps=50),
        inputs=SimpleNamespace(heldout=[None] * 3, policy_samples=16, reference_samples=32),
    )

    def loads(_: Any) -> Any:
        raise DataError("no model")

    monkeypatch.setattr(run, "prepare_run", loads)
    monkeypatch.setenv(FILE_ENV, str(tmp_path / "work.jsonl"))
    with pytest.raises(DataError, match="no model"):
        run._train_and_export(spec, None)  # type: ignore[arg-type]
    read = list(ReadingsFile(tmp_path / "work.jsonl").new())
    assert {(one.kind, one.done, one.total) for one in read} == {
        ("warm-start steps of vbon 8", None, 50),
        ("steps of vbon 8", None, 60),
        (MEASURED_ANSWERS, None, 3 * (32 + 2 * 16)),
    }


def test_the_measurement_between_imitation_and_sampling_is_not_in_the_pace_of_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two steps of 1 s, 500 s of measuring, and of four steps of 3 s the first."""

    @dataclass
    class Metrics:
        loss: float = 0.0

    clock, left = [0.0], []
    file, paces = ReadingsFile(tmp_path / "work.jsonl"), Paces()
    paces.begin("", 0.0)

    def step(number: int) -> Metrics:
        if number == 3:
            for reading in file.new():
                paces.read(reading)
            left.append(paces.left((), clock[0]))
        clock[0] += 1 if number < 2 else 3
        return Metrics()

    def imitated(_: Any) -> None:
        clock[0] += 500

    spec = SimpleNamespace(
        objective=SimpleNamespace(title="vbon", label="8"),
        config=SimpleNamespace(steps=4, warm_start_steps=2, replace=False, checkpoint_every=9),
        identity={},
    )
    active = SimpleNamespace(
        spec=spec, trainer=SimpleNamespace(total_steps=6, step=step), states=None, history=[]
    )
    monkeypatch.setenv(FILE_ENV, str(file.path))
    monkeypatch.setattr(work_report.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run, "resume", lambda *_, **__: {})
    monkeypatch.setattr(run, "check_step", lambda *_: None)
    monkeypatch.setattr(run, "_progress_line", lambda _: "")
    monkeypatch.setattr(run, "_imitated", imitated)
    run._take_steps(active, measures_imitation=True)  # type: ignore[arg-type]
    assert left == [Span(9.0, 9.0)]
