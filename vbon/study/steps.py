"""Steps of a study: each runs one command of the project and is skipped once it is done."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from vbon.cli.settings_command import INTERRUPTED
from vbon.errors import VbonError
from vbon.storage.atomic import write_json, write_text
from vbon.study.time_left import Paces, Span, Work
from vbon.study.work_to_come import START
from vbon.work_report import FILE_ENV, ReadingsFile

STATE, READINGS = "study.json", "work.jsonl"
_LOOK_S = 1.0
_TELL_S = 60.0
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class StepFailedError(VbonError):
    """A step of the study ended with an error, which it has printed itself."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        name: short and unique; its place in the state file.
        title: what happens, for the terminal.
        key: everything the result depends on; a step with another key is done again.
        outputs: files or directories that exist once the step is done.
        run: does the work.
        work: what the step will do as far as that is known before it has begun, for the time left; called
            anew at each look, because earlier steps decide it.
        start: kind of the work that the step does before it reports any; empty if the step does not report
            all of its work, so that what it does report is left out.
    """

    name: str
    title: str
    key: Any
    outputs: tuple[Path, ...]
    run: Callable[[], None]
    work: Callable[[], Sequence[Work]] = tuple
    start: str = START


class TimeLeft:
    """Says how long the running step and the study will still take."""

    def __init__(self, paces: Paces, readings: ReadingsFile, console: Console) -> None:
        self._paces, self._readings, self._console = paces, readings, console
        self._step: Step | None = None
        self._rest: Sequence[Step] = ()
        self._told_s, self._told_narrow = 0.0, False

    @contextmanager
    def of(self, step: Step, rest: Sequence[Step]) -> Iterator[None]:
        """Look every second while a step runs, and tell once a minute and when an estimate has got narrow."""
        self.begin(step, rest, time.monotonic())
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_LOOK_S):
                self.look(time.monotonic())

        watching = threading.Thread(target=watch, name="time-left", daemon=True)
        watching.start()
        before = os.environ.pop(FILE_ENV, None)
        if step.start:
            os.environ[FILE_ENV] = str(self._readings.path)
        try:
            yield
        finally:
            os.environ.pop(FILE_ENV, None)
            if before is not None:
                os.environ[FILE_ENV] = before
            ended.set()
            watching.join()
            self._read()

    def begin(self, step: Step, rest: Sequence[Step], now_s: float) -> None:
        """Begin a step, which others follow."""
        self._step, self._rest = step, rest
        self._told_s, self._told_narrow = now_s, False
        self._readings.begin()
        self._paces.begin(step.start, now_s)

    def look(self, now_s: float) -> None:
        """Read what the step has reported, and tell the time left if it is time to."""
        self._read()
        spans = self.left(now_s)
        if spans is None:
            return
        of_step, of_study = spans
        narrow = of_step.narrow and of_step.middle_s >= _LOOK_S
        if now_s - self._told_s >= _TELL_S or (narrow and not self._told_narrow):
            self._told_s, self._told_narrow = now_s, narrow
            if self._console.is_terminal:  # a bar of the step stands in this line, and comes again
                self._console.file.write("\r\x1b[2K")
            text = f"left: {of_step} for this step, {of_study} for the study"
            self._console.print(text, style="dim", highlight=False, markup=False)

    def left(self, now_s: float) -> tuple[Span, Span] | None:
        """The time left for the running step and for it and all others; ``None`` between steps."""
        if self._step is None:
            return None
        of_step = self._paces.left(self._step.work(), now_s)
        return of_step, sum((self.expected(step) for step in self._rest), of_step)

    def expected(self, step: Step) -> Span:
        """The time that a step to come will take."""
        return self._paces.span(step.work())

    def _read(self) -> None:
        for reading in self._readings.new():
            self._paces.read(reading)


@dataclass(slots=True)
class Progress:
    """Runs steps in order and remembers in ``study.json`` which are done."""

    directory: Path
    console: Console
    state: dict[str, Any] = field(default_factory=dict)
    paces: Paces = field(default_factory=Paces)

    def run(self, steps: Sequence[Step]) -> None:
        """Run all steps that are not done.

        A step is done again when an earlier one was, since it builds on it.

        Raises:
            StepFailedError: a command failed; the steps before it stay done.
        """
        done: dict[str, Any] = self.state.setdefault("steps", {})
        time_left = TimeLeft(self.paces, ReadingsFile(self.directory / READINGS), self.console)
        earlier = ""
        for number, step in enumerate(steps, start=1):
            digest = _digest([earlier, step.key])
            earlier = digest
            place = f"[{number}/{len(steps)}]"
            record = done.get(step.name)
            if record and record["digest"] == digest and all(p.exists() for p in step.outputs):
                self.console.print(f"{place} {step.title}: done before", highlight=False)
                continue
            self.console.rule(f"{place} {step.title}", align="left", style="dim")
            with self._clock(step.name, digest), time_left.of(step, steps[number:]):
                step.run()
            self.paces.learn(f"step {step.name}", 1, self.spent_s(step.name))
            done[step.name] = {"digest": digest}
            write_json(self.directory / STATE, self.state)
            left = sum((time_left.expected(one) for one in steps[number:]), Span())
            self.console.print(
                _after(step, self.spent_s(step.name), steps[number:], left), highlight=False
            )
        ReadingsFile(self.directory / READINGS).begin()

    def spent_s(self, name: str) -> float:
        """Seconds that a step took, over all starts that worked on it."""
        return float(self.state.get("spent", {}).get(name, {}).get("seconds", 0.0))

    @contextmanager
    def _clock(self, name: str, digest: str) -> Iterator[None]:
        """Add the time of a step to what earlier starts spent on the same step, also if it fails."""
        spent: dict[str, Any] = self.state.setdefault("spent", {})
        record = spent.get(name, {})
        before = record.get("seconds", 0.0) if record.get("digest") == digest else 0.0
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = round(before + time.perf_counter() - begun, 1)
            spent[name] = {"digest": digest, "seconds": seconds}
            self.state["paces"] = self.paces.known
            write_json(self.directory / STATE, self.state)


def command(program: str, *arguments: str, niceness: int = 0) -> None:
    """Run a command of the project, such as ``training evaluate --out DIR``, to its end.

    It ends with this process, also if that is killed, so a later start does not meet it at its work.

    Raises:
        StepFailedError: its status is not 0. KeyboardInterrupt: it was interrupted.
    """
    words = [sys.executable, "-m", program, *arguments]
    status = subprocess.run(words, check=False, preexec_fn=_child_setup(niceness)).returncode
    if status in (INTERRUPTED, -2):
        raise KeyboardInterrupt
    if status != 0:
        raise StepFailedError(
            f"`{program} {arguments[0]}` ended with status {status}; mend what it says above and give the "
            "same command again: finished steps are kept"
        )


def _child_setup(niceness: int) -> Callable[[], None]:
    """Function for a child to call before it starts the command."""
    parent = os.getpid()
    # Only Linux can end a child with its parent; elsewhere it goes on, and its lock keeps others away.
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def setup() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it was killed before
                os._exit(1)
        if niceness:
            os.nice(niceness)

    return setup


def write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a command as TOML."""
    write_text(file, tomli_w.dumps(without_null(settings)))


def without_null(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for TOML, which has no null; the word ``none`` stands for it in every settings file."""
    return {
        key: "none"
        if value is None
        else without_null(value)
        if isinstance(value, Mapping)
        else value
        for key, value in values.items()
    }


def takes_n(objective: str) -> bool:
    """True if an objective has an N, by its command's own help, which knows plug-ins too.

    Raises:
        StepFailedError: there is no such objective.
    """
    shown = subprocess.run(
        [sys.executable, "-m", "training", objective, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "110"},
    )
    if shown.returncode != 0:
        said = re.search(r"Did you mean [^?]*\?", shown.stderr)
        raise StepFailedError(
            f"there is no objective {objective!r}. {said[0] if said else '`vbon train` lists them.'}"
        )
    return "--num-samples " in shown.stdout


def _after(step: Step, seconds: float, rest: Sequence[Step], left: Span) -> str:
    following = f"; next: {rest[0].title}" if rest else ""
    if left.high_s is None or left.high_s >= _LOOK_S:
        following += f"; left for the study: {left}"
    return f"{step.title}: {seconds:.0f} s{following}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
