"""Reports of work done, for a program that runs this one and estimates the time left.

The program that waits names a file in the environment; this one appends a line whenever work begins, ends or
has gone on for another second. Without the variable nothing is written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

# Not with the prefix VBON_, whose unknown variables the service and others refuse.
FILE_ENV = "WORK_REPORT_FILE"
# Kinds that several commands report, or that one is told of before it begins.
PROMPTS_SAMPLED, MEASURED_ANSWERS, LOAD_TEST = "sampled prompts", "measured answers", "load test"
_EVERY_S = 1.0
_last_s: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class Reading:
    """One line of the file.

    Attributes:
        kind: name of the work, the same wherever it costs the same per unit.
        done: units done of the ``total`` of one piece of work; ``None`` if ``total`` is what the command
            will do of this kind in all, in one or several pieces.
        at_s: time of the machine's monotonic clock, which all its processes share.
    """

    kind: str
    done: float | None
    total: float
    at_s: float


def foresee_work(kind: str, total: float) -> None:
    """Tell how much work of a kind this command will do in all, before it begins."""
    if total > 0:
        _append(Reading(kind, None, total, time.monotonic()))


def report_work(kind: str, done: float, total: float, *, begins: bool = False) -> None:
    """Tell how much of a piece of work is done, at most once a second between its begin and its end."""
    now = time.monotonic()
    if begins or done >= total or now - _last_s.get(kind, 0.0) >= _EVERY_S:
        _last_s[kind] = now
        _append(Reading(kind, done, total, now))


def _append(reading: Reading) -> None:
    path = os.environ.get(FILE_ENV)
    # Of several processes (torchrun), only the first reports.
    if not path or os.environ.get("RANK", "0") != "0":
        return
    # An estimate is not worth a run: a full disk leaves it without this line.
    with suppress(OSError), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(reading)) + "\n")


class ReadingsFile:
    """The file as the waiting program reads it: each complete line once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = 0

    def begin(self) -> None:
        """Empty the file."""
        self._place = 0
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def new(self) -> Iterator[Reading]:
        """The readings that came since the last call; damaged lines are skipped."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._place)
                text = file.read()
        except OSError:
            return
        complete = text[: text.rfind(b"\n") + 1]
        self._place += len(complete)
        for line in complete.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                found = json.loads(line)
                done = None if found["done"] is None else float(found["done"])
                yield Reading(str(found["kind"]), done, float(found["total"]), float(found["at_s"]))
