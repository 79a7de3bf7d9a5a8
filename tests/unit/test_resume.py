"""Resumable states: two are kept, and none is taken that is not as it was written."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from training.train.resume import ResumableState, ResumableStates


class OneProcess:
    """Stands in for an ``Accelerator``; its weights are a number."""

    is_main_process = True
    weights = 0

    def wait_for_everyone(self) -> None:
        pass

    def save_state(self, directory: str) -> None:
        Path(directory).mkdir()
        (Path(directory) / "weights").write_text(str(self.weights))

    def load_state(self, directory: str) -> None:
        self.weights = int((Path(directory) / "weights").read_text())


@pytest.fixture
def states(tmp_path: Path) -> ResumableStates:
    made = ResumableStates(tmp_path / ".vbon.state", OneProcess())
    for step in (10, 20, 30):
        save(made, step)
    return made


def save(states: ResumableStates, step: int) -> None:
    states._accelerator.weights = step
    states.save(step, {"history": [step]})


def loaded(states: ResumableStates) -> tuple[list[int], int]:
    found = states.newest()
    assert isinstance(found, ResumableState)
    states.load(found)
    return found.run["history"], states._accelerator.weights


def names(states: ResumableStates) -> list[str]:
    return sorted(path.name for path in states.directory.iterdir())


def test_the_newest_is_taken_and_the_one_before_is_kept(states: ResumableStates) -> None:
    assert names(states) == ["step-000020", "step-000030"]
    assert loaded(states) == ([30], 30)
    states.clear()
    assert states.newest() is None


@pytest.mark.parametrize("file", ["accelerate/weights", "run.json", "checksums.json"])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(
    states: ResumableStates, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = states.directory / "step-000030" / file
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert loaded(states) == ([20], 20)
    assert str(path) in caplog.text
    save(states, 30)  # the same step again takes the place of the damaged one
    assert names(states) == ["step-000020", "step-000030"]
    assert loaded(states) == ([30], 30)


def test_what_was_saved_after_a_damaged_one_replaces_it(states: ResumableStates) -> None:
    (states.directory / "step-000030" / "run.json").unlink()
    save(states, 25)
    assert names(states) == ["step-000020", "step-000025"]


def test_without_a_whole_one_a_run_starts_over_and_says_so(
    states: ResumableStates, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (20, 30):
        (states.directory / f"step-{step:06d}" / "checksums.json").unlink()
    assert states.newest() is None
    assert "is damaged; starting over" in caplog.text


def test_a_kill_between_two_renames_is_recovered(states: ResumableStates) -> None:
    (states.directory / "step-000030").rename(states.directory / ".step-000030.retired")
    (states.directory / ".step-000030.partial").mkdir()
    assert loaded(states) == ([30], 30)
    assert names(states) == ["step-000020", "step-000030"]
