"""The time left that `vbon study` shows, on a planted clock whose truth is known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from service.loadtest import config as loadtest_config
from service.loadtest.analysis import calibration
from service.loadtest.config import LoadTestSettings
from service.loadtest.load.progress import TerminalProgress
from service.settings import ServiceSettings
from training.configs import EvaluateConfig
from vbon import work_report
from vbon.config import Settings, load_settings
from vbon.progress_bar import ProgressBar
from vbon.study import work_to_come
from vbon.study.config import StudyConfig
from vbon.study.run import Study
from vbon.study.steps import STATE, Step, StepFailedError, TimeLeft
from vbon.study.time_left import Paces, Span, Work
from vbon.terminal import duration
from vbon.work_report import (
    FILE_ENV,
    LOAD_TEST,
    MEASURED_ANSWERS,
    PROMPTS_SAMPLED,
    Reading,
    ReadingsFile,
)

QUARTER = 0.25
# Planted: seconds before a command reports, and seconds per unit of each kind of work.
LEAD_S, SERVED_S = 9.0, 40.0
UNIT_S = {
    PROMPTS_SAMPLED: 1.5,
    "warm-start steps of vbon": 0.4,
    "steps of vbon": 3.0,
    "steps of kl-rl": 4.1,
    MEASURED_ANSWERS: 0.05,
    LOAD_TEST: 1.1,
}
TRAIN_PROMPTS, TEST_PROMPTS = 180, 60
LOADTEST = {"concurrency": [1, 8], "rounds": 10}
PLANNED_S = 10 * 2 * 4 * 6.0  # rounds, levels, modes, a second of warm-up and five of measuring
CARD = 64 * 48
# Pieces of work by step, in order.
PIECES: dict[str, list[tuple[str, float]]] = {
    "sample": [(PROMPTS_SAMPLED, TRAIN_PROMPTS)],
    "train vbon": [
        ("warm-start steps of vbon", 50),
        ("steps of vbon", 60),
        (MEASURED_ANSWERS, CARD),
    ],
    "train kl-rl": [("steps of kl-rl", 60), (MEASURED_ANSWERS, CARD)],
    "evaluate": [
        (MEASURED_ANSWERS, 256 * TEST_PROMPTS),
        (MEASURED_ANSWERS, 64 * TEST_PROMPTS),
        (MEASURED_ANSWERS, 64 * TEST_PROMPTS),
    ],
    "measure": [(LOAD_TEST, PLANNED_S)],
}


def lead_s(step: str) -> float:
    return SERVED_S if step == "measure" else LEAD_S


def planted_s(step: str) -> float:
    return lead_s(step) + sum(UNIT_S[kind] * amount for kind, amount in PIECES[step])


@dataclass
class Look:
    """What was told, and the truth.

    Attributes:
        begun: share of each piece of the running step that was done.
    """

    step: str
    of_step: Span
    of_study: Span
    step_s: float
    study_s: float
    begun: dict[int, float]


@dataclass
class PlantedStudy:
    """A study whose commands take the planted times on a clock of its own."""

    out: Path
    paces: Paces = field(default_factory=Paces)
    now_s: float = 1000.0
    looks: list[Look] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = StudyConfig(
            policy="p",
            reward="r",
            prompts=[self.out / "all.txt"],
            out=self.out,
            objectives=["vbon", "kl-rl"],
            loadtest=LOADTEST,
        )
        study = Study(config)
        study.paces = self.paces
        study._work._paces = self.paces
        self.steps = [step for step in study.steps() if step.name in PIECES]
        parts = {"train": TRAIN_PROMPTS, "test": TEST_PROMPTS}
        (self.out / "prompts").mkdir(exist_ok=True)
        for part, count in parts.items():
            (self.out / "prompts" / f"{part}.jsonl").write_text("{}\n" * count)
        self.readings = ReadingsFile(self.out / "work.jsonl")
        self.time_left = TimeLeft(self.paces, self.readings, Console(file=StringIO(), width=300))

    def write(self, kind: str, done: float | None, total: float) -> None:
        line = {"kind": kind, "done": done, "total": total, "at_s": self.now_s}
        with self.readings.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def run(self, *, first: int = 0, stop_in: str = "") -> Iterator[Look]:
        """Every look from step ``first`` on; ``stop_in`` is left when half of its first piece is done."""
        for number, step in enumerate(self.steps[first:], start=first):
            rest = self.steps[number + 1 :]
            rest_s = sum(planted_s(one.name) for one in rest)
            ends_s = self.now_s + planted_s(step.name)
            self.time_left.begin(step, rest, self.now_s)
            begun: dict[int, float] = {}

            def look(
                step: Step = step,
                ends_s: float = ends_s,
                rest_s: float = rest_s,
                begun: dict[int, float] = begun,
            ) -> Look:
                self.time_left.look(self.now_s)
                spans = self.time_left.left(self.now_s)
                assert spans is not None
                left_s = ends_s - self.now_s
                return Look(step.name, *spans, left_s, left_s + rest_s, dict(begun))

            yield look()
            self.now_s += lead_s(step.name)
            pieces = PIECES[step.name]
            if step.name != "measure":
                for kind in dict.fromkeys(kind for kind, _ in pieces):
                    self.write(kind, None, sum(total for one, total in pieces if one == kind))
            for place, (kind, total) in enumerate(pieces):
                parts = 40
                for part in range(parts + 1):
                    self.now_s += UNIT_S[kind] * total / parts if part else 0
                    self.write(kind, total * part / parts, total)
                    begun[place] = part / parts
                    yield look()
                    if step.name == stop_in and part == parts // 2:
                        return
            self.paces.learn(f"step {step.name}", 1, planted_s(step.name))


@pytest.fixture(scope="module", autouse=True)
def _no_interpreters() -> Iterator[None]:
    """Whether an objective has an N is asked of its command; here it does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbon.study.run.takes_n", lambda objective: False)
        yield


@pytest.fixture(scope="module")
def planted(_no_interpreters: None, tmp_path_factory: pytest.TempPathFactory) -> PlantedStudy:
    study = PlantedStudy(tmp_path_factory.mktemp("planted"))
    study.looks = list(study.run())
    return study


def off(told: Span, truth_s: float) -> float:
    return abs(told.middle_s - truth_s) / max(truth_s, 1.0)


def test_what_is_called_about_holds_within_a_quarter_and_bounds_hold_always(
    planted: PlantedStudy,
) -> None:
    assert len(planted.looks) > 300
    for look in planted.looks:
        for span, truth_s in ((look.of_step, look.step_s), (look.of_study, look.study_s)):
            # A reading each fortieth of a piece: paces are exact but for rounding.
            assert span.low_s <= truth_s * 1.01 + 0.1, look
            assert span.high_s is None or span.high_s >= truth_s * 0.99 - 0.1, look
            if span.narrow and truth_s > 15:
                assert off(span, truth_s) <= QUARTER, look


def test_a_step_is_known_from_a_tenth_of_each_kind_of_its_work_on(planted: PlantedStudy) -> None:
    known = 0
    for look in planted.looks:
        kinds = dict.fromkeys(kind for kind, _ in PIECES[look.step])
        measured = {
            PIECES[look.step][place][0] for place, share in look.begun.items() if share >= 0.1
        }
        if measured == set(kinds):
            known += 1
            assert look.of_step.narrow, look
            assert off(look.of_step, look.step_s) <= 0.02 or look.step_s < 2, look
    assert known > 150


def test_the_study_is_known_once_each_kind_of_work_has_been_measured(planted: PlantedStudy) -> None:
    """Levels are given, so only training, measuring and the service's start are unknown at first."""
    looks = planted.looks
    before = [look for look in looks if look.step in ("sample", "train vbon")]
    assert before[0].of_study.unmeasured == (
        "sampling",
        "fine-tuning with vbon",
        "fine-tuning with kl-rl",
        "evaluation",
        "service and comparison",
    )
    assert before[0].of_study.low_s >= PLANNED_S
    assert all(look.of_study.high_s is None for look in before)
    # The second objective has never run: it gets a tenth of its steps, and so on to the end.
    after = [
        look
        for look in looks
        if look.step in ("evaluate", "measure")
        or (look.step == "train kl-rl" and look.begun.get(0, 0) >= 0.1)
    ]
    assert len(after) > 200
    assert all(look.of_study.high_s is not None for look in after)
    assert max(off(look.of_study, look.study_s) for look in after if look.study_s > 15) <= QUARTER


def test_a_study_that_goes_on_knows_the_paces_of_its_earlier_start(tmp_path: Path) -> None:
    first = PlantedStudy(tmp_path)
    list(first.run(stop_in="evaluate"))
    kept = json.loads(json.dumps(first.paces.known))  # as study.json keeps them
    again = PlantedStudy(tmp_path, Paces(kept))
    looks = list(again.run(first=3))
    assert looks[0].step == "evaluate"
    assert all(look.of_study.high_s is not None for look in looks)
    assert max(off(look.of_study, look.study_s) for look in looks if look.study_s > 15) <= QUARTER


def test_a_resumed_piece_counts_what_is_done_but_not_as_its_pace() -> None:
    """80 of 100 were done by an earlier start; four more took 8 s, so 16 take 32 s."""
    paces = Paces()
    paces.begin("", 0.0)
    paces.read(Reading("x", 80, 100, 5.0))
    assert paces.left((), 5.0) == Span(0.0, None, ("x",))
    paces.read(Reading("x", 81, 100, 7.0))
    assert paces.left((), 7.0).high_s is None  # a twentieth of the 20 that were left
    paces.read(Reading("x", 84, 100, 13.0))
    assert paces.left((), 13.0) == Span(32.0, 32.0)


def test_a_start_that_takes_longer_than_known_takes_no_time_from_the_work_after_it() -> None:
    """A service that starts, and compares, for longer than any before: the load test is still to come."""
    paces = Paces({"start": [1, 40.0]})
    works = [Work("start"), Work("load", 1, 100.0, 140.0)]
    paces.begin("start", 0.0)
    assert paces.left(works, 10.0) == Span(130.0, 170.0)
    for now_s in (40.0, 200.0, 2000.0):
        assert paces.left(works, now_s) == Span(100.0, 140.0)
    # A step that is one work from its start to its end has no other.
    whole = [Work("step", 1, 100.0, 140.0)]
    assert [paces.left(whole, now_s) for now_s in (120.0, 200.0)] == [Span(0, 20.0), Span(0, 0)]


def test_work_that_is_only_foreseen_is_not_all_that_a_step_does() -> None:
    """A training foresees the answers of its model card before it loads models; steps come first."""
    paces = Paces({"answers": [10, 5.0]})
    works = [Work("step", 1, 100.0, 400.0)]
    paces.begin("", 0.0)
    paces.read(Reading("answers", None, 20, 2.0))
    assert paces.left(works, 10.0) == Span(90.0, 390.0)
    paces.read(Reading("steps", None, 60, 20.0))
    paces.read(Reading("log p", 0, 4, 20.0))
    paces.read(Reading("log p", 2, 4, 24.0))
    assert paces.left(works, 24.0) == Span(4 + 10, None, ("steps",))


def test_scoring_between_the_blocks_of_a_load_test_is_not_their_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four blocks of 6 s, as planned, of which two come after 100 s of scoring; then two more."""
    clock = [0.0]
    monkeypatch.setattr(work_report.time, "monotonic", lambda: clock[0])
    monkeypatch.setenv(FILE_ENV, str(tmp_path / "work.jsonl"))
    file, paces = ReadingsFile(tmp_path / "work.jsonl"), Paces()
    paces.begin("", 0.0)

    def told() -> Span:
        for reading in file.new():
            paces.read(reading)
        return paces.left((), clock[0])

    progress = TerminalProgress(Console(file=StringIO()))
    progress.begin("warming up", None)
    progress.planned(4, 0, 24.0)
    for left_s in (24.0, 18.0):
        progress.begin("block", 6.0, left_s)
        clock[0] += 6
    assert told() == Span(18.0, 18.0)
    progress.begin("scoring bon", None)
    clock[0] += 100
    for left_s in (12.0, 6.0):
        progress.begin("block", 6.0, left_s)
        assert told() == Span(left_s, left_s)
        clock[0] += 6
    progress.planned(6, 4, 12.0)  # the ranges over rounds were too wide
    progress.begin("block", 6.0, 12.0)
    assert told() == Span(12.0, 12.0)


def test_a_step_that_does_not_report_all_of_its_work_reports_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bars of one model would be taken for the whole step, whose other models have none yet."""
    monkeypatch.setenv(FILE_ENV, "of a program around it")
    monkeypatch.setattr("vbon.study.run.command", lambda *_: seen.append(os.environ.get(FILE_ENV)))
    seen: list[str | None] = []
    config = StudyConfig(corpus=["text.txt"], out=tmp_path, objectives=["vbon"])
    time_left = TimeLeft(Paces(), ReadingsFile(tmp_path / "work.jsonl"), Console(file=StringIO()))
    for step in Study(config).steps():
        if step.name in ("models", "sample"):
            with time_left.of(step, []):
                step.run()
    assert seen == [None, str(tmp_path / "work.jsonl")]
    assert os.environ[FILE_ENV] == "of a program around it"


def test_spans_are_worded_by_what_is_known() -> None:
    assert str(Span(600, 600)) == "about 10 min"
    assert str(Span(600, 900)) == "about 12 min"  # 12.5: wrong by a quarter at most
    assert str(Span(600, 901)) == "10 min to 15 min"
    assert str(Span(600, None, ("sampling",))) == "at least 10 min (not measured yet: sampling)"
    assert str(Span(1, 9)) == "about 5 s"
    assert str(Span(1, 5) + Span(2, None, ("a",)) + Span(0, None, ("a", "b"))) == (
        "at least 3 s (not measured yet: a, b)"
    )
    assert [duration(s) for s in (9000, 40000, 200000)] == ["2.5 h", "11 h", "2.3 days"]


def test_the_time_left_is_told_once_a_minute_and_as_soon_as_it_is_known(
    planted: PlantedStudy,
) -> None:
    told = planted.time_left._console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(line.startswith("left: ") for line in told)
    total_s = sum(planted_s(name) for name in PIECES)
    assert len(PIECES) <= len(told) <= total_s / 60 + 2 * len(PIECES)


@pytest.mark.parametrize("settings_type", [ServiceSettings, LoadTestSettings, EvaluateConfig])
def test_no_command_of_a_study_takes_the_variable_for_a_misspelt_setting(
    settings_type: type[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FILE_ENV, str(tmp_path / "work.jsonl"))
    needed = ["--policies", "ref=p", "--reward", "r"] if settings_type is ServiceSettings else []
    assert load_settings(settings_type, needed, program="x")


def test_bars_report_their_work_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm start of 2 steps and 2 others, of which an earlier start did one; a second each."""
    clock = [100.0]
    monkeypatch.setattr(work_report.time, "monotonic", lambda: clock[0])
    monkeypatch.setenv(FILE_ENV, str(tmp_path / "work.jsonl"))
    file = ReadingsFile(tmp_path / "work.jsonl")
    with ProgressBar("training", 4, done=1, work={"warm": 2, "main": 2}) as bar:
        for _ in range(3):
            clock[0] += 2.0
            bar.advance()
    assert [(one.kind, one.done, one.total, one.at_s) for one in file.new()] == [
        ("warm", 1, 2, 100.0),
        ("main", None, 2, 100.0),
        ("warm", 2, 2, 102.0),
        ("main", 0, 2, 102.0),
        ("main", 1, 2, 104.0),
        ("main", 2, 2, 106.0),
    ]
    with file.path.open("a") as more:
        more.write('{"kind": "x"}\nnot json\n{"kind": "half')
    assert list(file.new()) == []
    monkeypatch.setenv("RANK", "1")
    with ProgressBar("other", 4):
        pass
    assert "other" not in file.path.read_text()


def test_a_failed_step_keeps_its_paces_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"prompt {i}\n" for i in range(30)))
    config = StudyConfig(policy="p", reward="r", prompts=[file], out=tmp_path / "out")

    def command(*words: str) -> None:
        if words[1] == "sample":
            work_report.report_work(PROMPTS_SAMPLED, 0, 18, begins=True)
            work_report.report_work(PROMPTS_SAMPLED, 9, 18, begins=True)
            raise StepFailedError("killed")

    monkeypatch.setattr("vbon.study.run.command", command)
    with pytest.raises(StepFailedError, match="killed"):
        Study(config).run()
    kept = json.loads((config.out / STATE).read_text())["paces"]
    assert kept[PROMPTS_SAMPLED][0] == 9
    again = Study(config)
    with pytest.raises(StepFailedError, match="killed"):
        again.run()
    assert again.paces.seconds_of(PROMPTS_SAMPLED, 18) is not None


def test_defaults_that_are_repeated_here_are_those_of_the_commands() -> None:
    settings, evaluated = LoadTestSettings(), EvaluateConfig()
    assert settings.rounds == work_to_come.ROUNDS
    assert (loadtest_config.BLOCK_S, loadtest_config.WARMUP_S) == (
        work_to_come.BLOCK_S,
        work_to_come.WARMUP_S,
    )
    assert calibration._LEAST_S + calibration._LEAD_S == work_to_come.LEAST_BLOCK_S
    assert (evaluated.reference_samples, evaluated.policy_samples) == (
        work_to_come.REFERENCE_SAMPLES,
        work_to_come.POLICY_SAMPLES,
    )


def test_work_without_a_pace_has_the_bounds_of_its_step() -> None:
    paces = Paces({"a": [2, 10.0]})
    works = [Work("a", 3), Work("b", 1, 5.0, 50.0)]
    assert paces.span(works) == Span(20.0, 65.0)
    assert paces.span([*works, Work("c", name="see")]) == Span(20.0, None, ("see",))


@pytest.mark.parametrize(
    ("loadtest", "planned_s"),
    [
        ({"concurrency": [1, 8]}, 5 * 2 * 3 * 6.0),  # ref, bon and vbon
        ({"concurrency": 4, "rate": [2], "rounds": 1}, 2 * 3 * 6.0),
        ({"concurrency": [4], "n": [4, 16]}, 5 * 4 * 6.0),  # best-of-4 and best-of-16
        (
            {"concurrency": [4], "modes": ["bon", "vbon"], "duration_s": 2, "warmup_s": 0},
            5 * 2 * 2.0,
        ),
        ({"concurrency": [4], "rounds": "many"}, 5 * 3 * 6.0),  # its own command refuses it later
    ],
)
def test_a_load_test_at_given_levels_has_a_plan(
    loadtest: dict[str, object], planned_s: float, tmp_path: Path
) -> None:
    config = StudyConfig(
        policy="p", reward="r", prompts=[tmp_path / "p"], out=tmp_path, loadtest=loadtest
    )
    work = work_to_come.WorkToCome(config, Paces(), ["ref", "bon", "vbon"]).of_measuring()[-1]
    assert (work.kind, work.amount, work.low_s) == (LOAD_TEST, planned_s, planned_s)
