"""The demo's stages and processes; the demo itself is one of README's two commands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from service.settings import ServiceSettings
from training.configs import EvaluateConfig, SampleConfig, SandboxConfig
from training.train.config import train_config_type
from vbon.config import load_settings
from vbon.demo import stages as stages_module
from vbon.demo.command import app
from vbon.demo.config import DemoConfig
from vbon.demo.processes import DemoFailedError, ended, start, wait
from vbon.demo.run import Demo, run_demo
from vbon.demo.stages import Stage, Stages
from vbon.errors import DataError
from vbon.terminal import duration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(stages_module.time, "monotonic", lambda: now[0])
    return now


def three_stages() -> Stages:
    stages = (Stage("models", 100), Stage("service", 50), Stage("compare", 50))
    return Stages(stages, Console(file=StringIO()), begun_s=0.0)


def test_the_time_left_follows_the_pace_of_the_stages_so_far(clock: list[float]) -> None:
    stages = three_stages()
    assert stages.announcement() == "[1/3] models (about 3 min left; next: service)"
    with stages.next():
        clock[0] += 200  # twice as slow as expected
    assert stages.left_s() == 2 * (50 + 50)
    assert stages.announcement() == "[2/3] service (about 3 min left; next: compare)"
    with stages.next():
        clock[0] += 25  # faster: 225 s instead of 150 so far
    assert stages.left_s() == 225 / 150 * 50
    assert stages.announcement() == "[3/3] compare (about 75 s left)"
    assert stages.elapsed_s == 225


def test_a_stage_kept_from_an_earlier_start_tells_nothing_of_the_pace(clock: list[float]) -> None:
    stages = three_stages()
    with stages.next():
        clock[0] += 5
    assert stages.left_s() == 100


def test_durations_are_rough() -> None:
    assert [duration(seconds) for seconds in (3.4, 89, 90, 200)] == [
        "3 s",
        "89 s",
        "2 min",
        "3 min",
    ]


def test_a_part_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    console = Console(file=StringIO())
    good = start("good", tmp_path, "vbon", "--help")
    wait(console, [good], lambda: ended(good))
    assert good.last_line() == "Each command explains itself with --help."
    bad = start("bad", tmp_path, "vbon", "serv")
    with pytest.raises(DemoFailedError, match=r"bad ended with status 2; the end of .*bad\.log"):
        wait(console, [bad], lambda: ended(bad))
    with pytest.raises(
        DemoFailedError, match="good ended with status 0"
    ):  # it should not have ended
        wait(console, [], lambda: False, needs=[good])


def test_what_was_started_is_stopped(tmp_path: Path) -> None:
    sleeper = start("sleeper", tmp_path, "http.server", "0", "--bind", "127.0.0.1")
    sleeper.stop()
    assert sleeper.process.poll() is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_demo_that_is_told_to_end_stops_what_it_has_started(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []

    def ends(config: DemoConfig) -> None:
        with ExitStack() as stack:
            demo = Demo(config, stack)
            parts.append(demo._start("sleeper", "http.server", "0", "--bind", "127.0.0.1"))
            os.kill(os.getpid(), number)
            time.sleep(20)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("vbon.demo.run.run_demo", ends)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert "finished parts are kept" in result.stderr
    assert parts[0].process.poll() is not None
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_part_gets_as_many_threads_as_it_is_given(tmp_path: Path) -> None:
    says = "import os; print(os.environ.get('OMP_NUM_THREADS'))"
    before = os.environ.get("OMP_NUM_THREADS")
    for threads, told in ((3, "3"), (None, str(before))):
        part = start("told", tmp_path, "timeit", "-n1", "-r1", says, threads=threads)
        part.process.wait(20)
        assert part.log.read_text().splitlines()[0] == told


def test_every_command_of_the_demo_takes_its_flags(tmp_path: Path) -> None:
    with ExitStack() as parts:
        demo = Demo(DemoConfig(out=tmp_path, corpus=["a=1", "b=0"], encoding="latin-1"), parts)
    for words, kind in (
        (demo._sandbox(), SandboxConfig),
        (demo._sample(), SampleConfig),
        (demo._train(), train_config_type("vbon")),
        (demo._evaluate(), EvaluateConfig),
        (demo._serve(), ServiceSettings),
    ):
        load_settings(kind, words[2:], program="vbon demo")


def test_the_other_story_is_offered_by_a_command_that_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as parts:
        Demo(DemoConfig(out=tmp_path), parts)._offer_the_story()
    said = capsys.readouterr().out
    assert "scripts/demo --distil" in said
    assert load_settings(DemoConfig, ["--distil"], program="vbon demo").distil


def test_a_taken_port_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"port {port} is taken.*another --port"):
            run_demo(DemoConfig(out=tmp_path / "sandbox", port=port))
    assert not (tmp_path / "sandbox").exists()


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], ["--distil"]),
        (["--once", "--port", "8001"], ["--distil", "--once", "--port", "8001"]),
        (["--no-distil", "--once"], ["--no-distil", "--once"]),
        (["--distil"], ["--distil"]),
    ],
)
def test_the_script_tells_the_story_of_distilling_unless_told_otherwise(
    tmp_path: Path, given: list[str], passed: list[str]
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for file, text in (
        ("scripts/demo", (ROOT / "scripts" / "demo").read_text()),
        ("scripts/setup", "#!/bin/sh\n"),
        ("venv/bin/vbon", '#!/bin/sh\nprintf "%s\\n" "$@"\n'),
    ):
        (tmp_path / file).write_text(text)
        (tmp_path / file).chmod(0o755)
    environment = {**os.environ, "SETUP_VENV": str(tmp_path / "venv")}
    ran = subprocess.run(
        [str(tmp_path / "scripts" / "demo"), *given],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert ran.stdout.split() == ["demo", *passed]
