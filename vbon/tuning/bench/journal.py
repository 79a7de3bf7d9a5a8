"""The finished studies of a bench on disk, one JSON line each, so that a run that was killed goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vbon.errors import DataError
from vbon.storage.atomic import read_errors, write_errors, write_text
from vbon.tuning.bench.run import StudyRecord
from vbon.tuning.studies import differences

# 2: models are used from the end of the common start on, not from the eleventh evaluation on.
VERSION = 2
Key = tuple[str, str, int]  # problem, sampler, seed


class Journal:
    """Finished studies by (problem, sampler, seed), of one length and on the same tables.

    Args:
        path: the file; None keeps them in memory only.
        asked: what all studies have in common; a file with another is refused.

    Raises:
        DataError: the file is of another bench, or damaged before its last line.
    """

    def __init__(self, path: Path | None, asked: Mapping[str, Any]) -> None:
        self._path, self._trials = path, asked.get("trials")
        self.records: dict[Key, StudyRecord] = {}
        if path is None:
            return
        head = json.dumps({"version": VERSION, "asked": dict(asked)})
        if not path.exists():
            write_text(path, head + "\n")
            return
        with read_errors(path):
            # What is no text is damaged JSON as well, and named as that.
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        # A process that was killed may have written a part of its last line.
        whole = lines if lines and lines[-1].endswith("\n") else lines[:-1]
        self._check(whole[:1], asked)
        for number, line in enumerate(whole[1:], start=2):
            self._take(line, number)
        if len(whole) < len(lines):
            write_text(path, "".join(whole))

    def add(self, key: Key, record: StudyRecord) -> None:
        """Keep a study, on disk at once.

        Raises:
            ExportError: the file could not be written.
        """
        self.records[key] = record
        if self._path is None:
            return
        problem, sampler, seed = key
        line = {
            "problem": problem,
            "sampler": sampler,
            "seed": seed,
            "seconds": round(record.seconds, 6),
            "regrets": [float(f"{value:.10g}") for value in record.regrets],
        }
        with write_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _check(self, head: list[str], asked: Mapping[str, Any]) -> None:
        try:
            found = json.loads(head[0])
            version, before = found["version"], dict(found["asked"])
        except (IndexError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self._path} is not a journal of this bench; give --journal another file"
            ) from error
        if version != VERSION:
            raise DataError(
                f"{self._path} has version {version}, and this program goes on with version {VERSION}; give "
                "--journal another file"
            )
        differing = differences(before, json.loads(json.dumps(dict(asked))))
        if differing:
            raise DataError(
                f"{self._path} has studies of another bench: {'; '.join(differing)}; give --journal another "
                "file, or repeat the settings of that run"
            )

    def _take(self, line: str, number: int) -> None:
        try:
            found = json.loads(line)
            key = (str(found["problem"]), str(found["sampler"]), int(found["seed"]))
            regrets = np.array(found["regrets"], dtype=np.float64)
            if regrets.shape != (self._trials,) or not np.isfinite(regrets).all():
                raise ValueError(f"its regrets are not {self._trials} finite numbers")
            self.records[key] = StudyRecord(regrets, float(found["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"line {number} of {self._path} is damaged ({error}); remove it, and its study runs again"
            ) from error
