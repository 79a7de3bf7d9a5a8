"""The journal of a run: its plan and one line for every finished step, so that the run can be continued."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from service.loadtest.config import LoadTestSettings
from vbon.errors import DataError, ExportError
from vbon.storage.atomic import write_json

PLAN, JOURNAL = "plan.json", "journal.jsonl"
# Settings that may differ when a run is continued: they do not change how it measures; `rounds` may grow.
_MAY_CHANGE = {
    "out",
    "store",
    "tag",
    "price_per_hour",
    "training_price_per_hour",
    "training_hours",
    "currency",
    "rounds",
    "extend",
    "wait_s",
    "api_key_env",
    "run_id",
    "supervised",
    "limit_s",
}


class Journal:
    """The finished steps of a run, which are read back when the run is continued.

    Attributes:
        id: the run's id in the store.
        lines: all finished steps in order, each with its ``kind``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.id = uuid.uuid4().hex[:12]
        self._path = directory / JOURNAL
        self.lines: list[dict[str, Any]] = []

    @classmethod
    def begin(cls, settings: LoadTestSettings, server: dict[str, Any]) -> Journal:
        """Start a new run, or continue one with the same settings against the same server.

        Raises:
            DataError: the directory holds a run with other settings, or one that cannot be read.
            ExportError: the directory cannot be written to.
        """
        journal = cls(settings.out)
        journal.id = settings.run_id or journal.id
        asked = settings.model_dump(mode="json")
        plan = {"id": journal.id, "settings": asked, "server": server}
        path = journal.directory / PLAN
        if not path.exists():
            write_json(path, plan)
            return journal
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            journal.id = before["id"]
            fixed = asked.keys() - _MAY_CHANGE
            changed = sorted(key for key in fixed if before["settings"].get(key) != asked[key])
            changed += [] if before["server"] == server else ["the server's modes or revisions"]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is not the plan of a load test: {error}") from error
        if changed:
            raise DataError(
                f"{journal.directory} holds a run with other settings ({', '.join(changed)}); "
                "give the same settings to continue it, or another --out"
            )
        write_json(path, {**plan, "id": journal.id})
        journal._read()
        return journal

    @classmethod
    def reopen(cls, directory: Path) -> tuple[Journal, dict[str, Any]]:
        """The journal and the plan of an existing run, for reading.

        Raises:
            DataError: the directory does not hold a load test.
        """
        try:
            plan = json.loads((directory / PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{directory} does not hold a load test: {error}") from error
        journal = cls(directory)
        journal.id = str(plan["id"])
        journal._read()
        return journal, plan

    def _read(self) -> None:
        if not self._path.exists():
            return
        whole, _, rest = self._path.read_bytes().rpartition(b"\n")
        if rest:  # the run was killed while it wrote a line, so that step is measured again
            os.truncate(self._path, len(whole) + bool(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self.lines.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{self._path}:{number} is damaged: not JSON") from error

    def append(self, kind: str, value: dict[str, Any]) -> None:
        """Append one finished step; it is on the disk when this returns.

        Raises:
            ExportError: the journal could not be written.
        """
        line = {"kind": kind, **value}
        try:
            with self._path.open("ab") as handle:
                handle.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise ExportError(f"could not write {self._path}: {error.strerror}") from error
        self.lines.append(line)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The finished steps of one kind, in order, without the ``kind`` itself."""
        return [
            {key: value for key, value in line.items() if key != "kind"}
            for line in self.lines
            if line["kind"] == kind
        ]
