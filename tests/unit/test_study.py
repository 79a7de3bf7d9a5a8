"""A study: its split, its steps, and the settings it hands on."""

from __future__ import annotations

import json
import tomllib
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from service.loadtest.config import LoadTestSettings
from service.settings import ServiceSettings
from training.configs import EvaluateConfig, SampleConfig
from training.train.config import train_config_type
from vbon.config import load_settings
from vbon.errors import DataError
from vbon.prompt_files import read_prompts
from vbon.report_html import ReportTable
from vbon.study.config import StudyConfig
from vbon.study.report import Findings, show_verdict, write_report
from vbon.study.run import Study, run_study
from vbon.study.split import PARTS, split_prompts, write_split
from vbon.study.steps import STATE, Progress, Step, StepFailedError, without_null

SHIPPED = Path(__file__).resolve().parents[2] / "docs" / "smollm2-study.toml"


def prompts_file(path: Path, count: int) -> Path:
    path.write_text("".join(f"prompt {i}\n" for i in range(count)))
    return path


def study_config(tmp_path: Path, **changes: object) -> StudyConfig:
    prompts = prompts_file(tmp_path / "prompts.txt", 30)
    values = {"policy": "p", "reward": "r", "prompts": [prompts], "out": tmp_path / "out"}
    return StudyConfig(**{**values, **changes})  # type: ignore[arg-type]


@given(
    count=st.integers(10, 400),
    validation=st.floats(0.05, 0.45),
    test=st.floats(0.05, 0.45),
    seed=st.integers(0, 9),
)
def test_every_prompt_is_in_exactly_one_part(
    tmp_path_factory: pytest.TempPathFactory, count: int, validation: float, test: float, seed: int
) -> None:
    file = prompts_file(tmp_path_factory.mktemp("split") / "prompts.txt", count)
    split = split_prompts([file, file], validation, test, seed)
    texts = [prompt.text for part in PARTS for prompt in split.parts[part]]
    assert sorted(texts, key=str) == sorted({f"prompt {i}" for i in range(count)})
    assert split.duplicates == count
    assert len(split.parts["test"]) == max(2, round(count * test))
    assert len(split.parts["validation"]) == max(2, round(count * validation))
    again = split_prompts([file], validation, test, seed)
    assert again.parts == split.parts


def test_a_split_survives_its_files_chats_included(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    chat = [{"role": "user", "content": "hello"}]
    lines = [{"prompt": f"prompt {i}\u2028"} for i in range(9)] + [{"messages": chat}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    split = split_prompts([file], 0.2, 0.2, 0)
    write_split(split, tmp_path)
    for part in PARTS:
        assert read_prompts(tmp_path / f"{part}.jsonl") == split.parts[part]


def test_too_few_prompts_are_refused_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"5 distinct prompts are too few .* at least 6"):
        split_prompts([prompts_file(tmp_path / "few.txt", 5)], 0.2, 0.2, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy": None}, "--policy missing"),
        ({"policy": None, "reward": None}, "--policy and --reward missing"),
        ({"corpus": ["a=1"]}, "not both"),
        ({"validation_share": 0.5, "test_share": 0.5}, "leave no prompts to train on"),
        ({"objectives": ["vbon", "vbon"]}, "named twice"),
        ({"n": 1}, "greater than or equal to 2"),
        (
            {"training": {"dpo": {"beta": 0.5}}},
            r"training has settings of dpo, which is not trained",
        ),
    ],
)
def test_contradictory_settings_are_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        study_config(tmp_path, **changes)


class Recorder:
    """Steps that write a file and remember that they ran; ``fail`` names one that raises."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.ran, self.fail = directory, list[str](), ""

    def step(self, name: str, key: object = None) -> Step:
        target = self.directory / name

        def run() -> None:
            self.ran.append(name)
            if self.fail == name:
                raise StepFailedError(f"{name} failed")
            target.write_text("made")

        return Step(name, f"do {name}", key, (target,), run)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


def progress_of(directory: Path) -> Progress:
    file = directory / STATE
    state = json.loads(file.read_text()) if file.exists() else {}
    return Progress(directory, Console(file=StringIO()), state)


def ran(recorder: Recorder, steps: list[Step]) -> list[str]:
    recorder.ran.clear()
    progress_of(recorder.directory).run(steps)
    return recorder.ran


def test_finished_steps_are_skipped_and_what_follows_a_change_is_done_again(
    recorder: Recorder,
) -> None:
    steps = [recorder.step("a"), recorder.step("b"), recorder.step("c")]
    assert ran(recorder, steps) == ["a", "b", "c"]
    assert ran(recorder, steps) == []
    changed = [recorder.step("a"), recorder.step("b", key="other"), recorder.step("c")]
    assert ran(recorder, changed) == ["b", "c"]
    (recorder.directory / "c").unlink()
    assert ran(recorder, changed) == ["c"]


def test_a_failed_step_keeps_those_before_it_and_its_time_counts(recorder: Recorder) -> None:
    steps = [recorder.step("a"), recorder.step("b"), recorder.step("c")]
    recorder.fail = "b"
    with pytest.raises(StepFailedError, match="b failed"):
        ran(recorder, steps)
    state = json.loads((recorder.directory / STATE).read_text())
    assert (sorted(state["steps"]), sorted(state["spent"])) == (["a"], ["a", "b"])
    state["spent"]["b"]["seconds"] = 100.0  # what the first start spent
    (recorder.directory / STATE).write_text(json.dumps(state))
    recorder.fail = ""
    assert ran(recorder, steps) == ["b", "c"]
    assert progress_of(recorder.directory).spent_s("b") >= 100.0


def test_each_command_takes_the_settings_that_the_study_writes_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown keys and bad values would end the command with status 2."""
    commands: list[list[str]] = []
    monkeypatch.setattr("vbon.study.run.command", lambda *words: commands.append(list(words)))
    study = Study(study_config(tmp_path, gold="g", n=4, objectives=["vbon", "kl-rl"]))
    steps = {step.name: step for step in study.steps()}
    assert list(steps) == [
        "split",
        "sample",
        "train vbon",
        "train kl-rl",
        "evaluate",
        "measure",
        "report",
    ]
    for name in ("split", "sample", "train vbon", "train kl-rl", "evaluate"):
        steps[name].run()
    sample, vbon, kl_rl, evaluate = commands

    def loaded(kind: type, words: list[str]) -> object:
        flags = [word for word in words[2:] if word != "--replace"] + ["--replace"] * (
            "--replace" in words
        )
        return load_settings(kind, flags, program="x")

    assert loaded(SampleConfig, sample).prompts == study.out / "prompts" / "train.jsonl"  # type: ignore[attr-defined]
    trained = loaded(train_config_type("vbon"), vbon)
    assert (trained.num_samples, trained.gold) == (4, "g")  # type: ignore[attr-defined]
    assert "--num-samples" not in kl_rl  # it has no N
    assert loaded(train_config_type("kl-rl"), kl_rl).heldout.name == "validation.jsonl"  # type: ignore[attr-defined]
    evaluated = loaded(EvaluateConfig, evaluate)
    assert (evaluated.prompts.name, evaluated.seed) == ("test.jsonl", 1)  # type: ignore[attr-defined]
    assert set(evaluated.checkpoints) == {"vbon", "kl-rl"}  # type: ignore[attr-defined]
    served = ServiceSettings(**without_null(study._service()))
    assert set(served.policies) == {"ref", "vbon", "kl-rl"}
    loaded_with = LoadTestSettings(**steps["measure"].key[1])
    assert loaded_with.n == [4]
    # As everywhere, a calibration chooses what saturates every mode, which a verdict needs.
    assert loaded_with.chooses_levels
    assert (loaded_with.rounds, loaded_with.stream) == (5, None)


def test_settings_of_one_step_and_of_one_objective_reach_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr("vbon.study.run.command", lambda *_: None)
    training = {
        "steps": 7,
        "engine_args": {"block_size": 16},
        "kl-rl": {"beta": 0.5, "steps": 9},
    }
    study = Study(
        study_config(
            tmp_path,
            objectives=["vbon", "kl-rl"],
            training=training,
            sampling={"engine_args": {"enforce_eager": True}, "concurrency": 2},
        )
    )
    for step in study.steps():
        if step.name.startswith(("train", "sample")):
            step.run()
            file = study.out / "settings" / f"{step.name.replace(' ', '-')}.toml"
            written[step.name] = tomllib.loads(file.read_text())
    sampled = written["sample"]
    assert (sampled["engine_args"], sampled["concurrency"]) == ({"enforce_eager": True}, 2)
    vbon, kl_rl = written["train vbon"], written["train kl-rl"]
    assert (vbon["steps"], vbon["engine_args"]) == (7, {"block_size": 16})
    assert not {"beta", "kl-rl"} & vbon.keys()
    assert (kl_rl["steps"], kl_rl["beta"], kl_rl["engine_args"]) == (9, 0.5, {"block_size": 16})
    assert "kl-rl" not in kl_rl


def test_a_study_without_settings_of_its_sampling_is_recorded_as_before(tmp_path: Path) -> None:
    assert "sampling" not in study_config(tmp_path).model_dump(mode="json")


def test_the_shipped_study_is_one(tmp_path: Path) -> None:
    config = load_settings(StudyConfig, ["--config", str(SHIPPED)], program="vbon study")
    study = Study(config.model_copy(update={"out": tmp_path / "out"}))
    steps = {step.name: step for step in study.steps()}
    for name in config.objectives:
        settings = steps[f"train {name}"].key[0]
        train_config_type(name)(**without_null(settings))
    SampleConfig(**steps["sample"].key[0])
    EvaluateConfig(**without_null(steps["evaluate"].key[0]))
    ServiceSettings(**without_null(study._service()))
    LoadTestSettings(**steps["measure"].key[1])


def test_a_directory_with_another_study_is_refused_by_the_settings_that_differ(
    tmp_path: Path,
) -> None:
    config = study_config(tmp_path)
    config.out.mkdir()
    settings = config.model_dump(mode="json", exclude={"out", "replace"}) | {"n": 8, "seed": 3}
    (config.out / STATE).write_text(json.dumps({"config": settings, "steps": {}}))
    with pytest.raises(
        DataError, match=r"other settings \(n, seed\); choose another --out, or give --replace"
    ):
        run_study(config)
    (config.out / STATE).write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        run_study(config)


def test_an_unknown_objective_is_named_before_anything_starts(tmp_path: Path) -> None:
    config = study_config(tmp_path, objectives=["vbonn"])
    with pytest.raises(StepFailedError, match=r"no objective 'vbonn'. Did you mean 'vbon'"):
        run_study(config)
    assert not (config.out / "prompts").exists()


@pytest.mark.parametrize("full", [False, True])
def test_the_end_of_a_study_is_its_verdict_and_one_table(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sentences, one table and three warnings; --full prints the others too."""
    tables = [ReportTable(name, name, "", ("mode",), (("ref",),), None) for name in "QS"]
    found = Findings(
        verdict=[f"Sentence {i} [bold]." for i in range(5)],
        warnings=[f"Warning {i}." for i in range(4)],
        facts={"policy": "p @ 1234"},
        quality=tables[0],
        speed=tables[1],
        serve="vbon serve",
    )
    monkeypatch.setattr("vbon.study.report.read_findings", lambda directory: found)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(part in page for part in ("Sentence 4", "Warning 3.", "vbon serve", "p @ 1234"))
    assert "The plots need JavaScript" not in page  # it has none
    console = Console(file=StringIO(), width=130)
    show_verdict(tmp_path, console, full=full)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("Sentence") == (5 if full else 3)
    assert said.count("[bold]") == (5 if full else 3)
    assert said.count("\u2521") == (2 if full else 1)  # the line below a table's head
    assert said.count("Warning") == (4 if full else 3)
    assert ("1 more warning in the report" in said) == ("--full" in said) == (not full)
    assert said.index("Sentence 0") < said.index("\u2521") < said.index("Warning 0")
    assert str(tmp_path / "report.html") in said.replace("\n", "")
