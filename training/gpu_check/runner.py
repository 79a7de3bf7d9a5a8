"""Runs the steps one after another, each within its time limit, and keeps what they found."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.gpu_check.plan import CheckStep, command_of
from training.outputs.identity import read_json_record
from vbon.storage.atomic import write_json

RESULTS = "results.json"
_LEAST_S = 5.0  # a step that has less is not begun
_END_S = 10.0


class CheckRunner:
    """Runs steps and records them.

    Args:
        figures: the figures of a finished step, from the record of its process.
        report: called with all results after each step.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        seconds: float,
        figures: Callable[[CheckStep, Mapping[str, Any]], dict[str, Any]],
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self.out, self._figures, self._report = out, figures, report
        self._end = time.monotonic() + seconds
        earlier = read_json_record(out / RESULTS) or {}
        # Figures of two revisions of the code would not belong together.
        same = all(earlier.get(key) == settings.get(key) for key in ("config", "git_revision"))
        kept = earlier.get("steps", {}) if same else {}
        self.results: dict[str, Any] = {
            **settings,
            "steps": {name: step for name, step in kept.items() if step["status"] == "done"},
        }

    def run(self, steps: Sequence[CheckStep]) -> dict[str, Any]:
        """Run the steps that are not done; all results."""
        (self.out / "logs").mkdir(parents=True, exist_ok=True)
        done: dict[str, Any] = self.results["steps"]
        self._write()
        for step in steps:
            if done.get(step.name, {}).get("status") == "done":
                continue
            done[step.name] = {"title": step.title, **self._outcome(step)}
            self._write()
        return self.results

    def _outcome(self, step: CheckStep) -> dict[str, Any]:
        missing = [
            n for n in step.needs if self.results["steps"].get(n, {}).get("status") != "done"
        ]
        if step.absent:
            return {"status": "not here", "reason": step.absent}
        if missing:
            return {"status": "left out", "reason": f"it needs {', '.join(missing)}"}
        limit = min(step.limit_s, self._end - time.monotonic())
        if limit < _LEAST_S:
            return {
                "status": "left out",
                "reason": "no time was left; run the check again to go on",
            }
        return self._measured(step, limit)

    def _measured(self, step: CheckStep, limit: float) -> dict[str, Any]:
        record, log = (
            self.out / "logs" / f"{step.name}.json",
            self.out / "logs" / f"{step.name}.log",
        )
        record.unlink(missing_ok=True)
        words = command_of(step, record)
        begun = time.monotonic()
        with log.open("w") as handle:
            status = run_limited(words, limit, handle)
        found: dict[str, Any] = {
            "seconds": round(time.monotonic() - begun, 1),
            "command": " ".join(words),
        }
        if status is None:
            return {"status": "out of time", "reason": f"stopped after {limit:.0f} s", **found}
        written = read_json_record(record)
        if status != 0 or written is None:
            return {"status": "failed", "reason": _last_lines(log), "exit": status, **found}
        try:
            return {"status": "done", **found, "figures": self._figures(step, written)}
        except (OSError, KeyError, ValueError) as error:
            reason = f"its figures cannot be read: {type(error).__name__}: {error}"
            return {"status": "failed", "reason": reason, **found}

    def _write(self) -> None:
        write_json(self.out / RESULTS, self.results)
        self._report(self.results)


def run_limited(words: Sequence[str], limit: float, log: Any) -> int | None:
    """The exit status of a command; ``None`` if it was stopped at its limit, with all its children."""
    process = subprocess.Popen(
        words,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end_session(process)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End a command and its children, which a launcher or an engine may have left behind."""
    for sign, patience in ((signal.SIGINT, _END_S), (signal.SIGKILL, _END_S)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-3:])[-600:]
