"""Records of a file, with their places for messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        where: its place for messages: ``FILE:LINE``, or ``FILE, record N``.
        value: a line of text, or a JSON value; rows of tables are objects.
    """

    where: str
    value: Any


@dataclass(frozen=True, slots=True)
class RecordFile:
    """The records of a source.

    Attributes:
        name: the source for messages.
        form: the form found, such as ``"JSON lines"``.
        records: read once, in order; errors in them are raised while they are read.
        sha256: hash of the source's bytes as stored.
        columns: the columns of a table; ``None`` for text and JSON, whose records may differ.
    """

    name: str
    form: str
    records: Iterator[Record]
    sha256: str
    columns: tuple[str, ...] | None = None


def find_column(names: Iterator[str] | list[str] | tuple[str, ...], wanted: str) -> str | None:
    """The column with a name: spelt alike, or else alike but for case and spaces around it."""
    every = list(names)
    if wanted in every:
        return wanted
    alike = [name for name in every if name.strip().lower() == wanted.lower()]
    return alike[0] if len(alike) == 1 else None


def listed(names: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    """Names for a message, quoted, the first twelve at most."""
    every = [repr(name) for name in names]
    return ", ".join(every[:12]) + (", ..." if len(every) > 12 else "") if every else "nothing"


def describe_value(value: Any) -> str:
    """A value of a record in words, for a message on a value of the wrong kind."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"the number {value!r:.40}" if not isinstance(value, bool) else str(value).lower()
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, bytes):  # of a Parquet file
        return "bytes"
    return "a list" if isinstance(value, list) else "an object"
