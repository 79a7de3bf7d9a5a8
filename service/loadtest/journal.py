"""A run's directory: what was planned, and a line for everything finished, so that it can be continued."""

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
# They change what is made of the measurements, not the measurements; `rounds` may grow.
_FREE = {
    "out", "store", "tag", "price_per_hour", "training_price_per_hour", "training_hours", "currency",
    "rounds", "wait_s", "api_key_env", "run_id", "supervised",
}  # fmt: skip


class Journal:
    """Finished lines of a run, read back when it is continued.

    Attributes:
        id: of the run, for the store.
        lines: all of them, each with its ``kind``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.id = uuid.uuid4().hex[:12]
        self._path = directory / JOURNAL
        self.lines: list[dict[str, Any]] = []

    @classmethod
    def begin(cls, settings: LoadTestSettings, server: dict[str, Any]) -> Journal:
        """Open a new run, or one that was begun with the same settings against the same server.

        Raises:
            DataError: the directory holds a run with others, or one that cannot be read.
            ExportError: it cannot be written.
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
            fixed = asked.keys() - _FREE
            changed = sorted(key for key in fixed if before["settings"].get(key) != asked[key])
            changed += [] if before["server"] == server else ["the server's modes or revisions"]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is not a load test's plan: {error}") from error
        if changed:
            raise DataError(
                f"{journal.directory} holds a run with other settings ({', '.join(changed)}); "
                "give the same ones to continue it, or another --out"
            )
        write_json(path, {**plan, "id": journal.id})
        journal._read()
        return journal

    @classmethod
    def reopen(cls, directory: Path) -> tuple[Journal, dict[str, Any]]:
        """A run that is only looked at, and its plan.

        Raises:
            DataError: there is none.
        """
        try:
            plan = json.loads((directory / PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{directory} holds no load test: {error}") from error
        journal = cls(directory)
        journal.id = str(plan["id"])
        journal._read()
        return journal, plan

    def _read(self) -> None:
        if not self._path.exists():
            return
        whole, _, rest = self._path.read_bytes().rpartition(b"\n")
        if rest:  # a kill in the middle of a line: that block is measured again
            os.truncate(self._path, len(whole) + bool(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self.lines.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{self._path}:{number} is damaged") from error

    def append(self, kind: str, value: dict[str, Any]) -> None:
        """Write one finished thing; it is on the disk when this returns.

        Raises:
            ExportError: it could not be written.
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
        """Lines of a kind, without it, in order."""
        return [
            {key: value for key, value in line.items() if key != "kind"}
            for line in self.lines
            if line["kind"] == kind
        ]
