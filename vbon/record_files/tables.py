"""Records of tables in text files: CSV, TSV and their kin."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vbon.errors import DataError
from vbon.record_files.records import Record, find_column

if TYPE_CHECKING:
    from _csv import Reader

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_OTHERS = (",", "\t", ";", "|")
_FORMS = {",": "CSV", "\t": "TSV"}
_HEADING = re.compile(r"[\w .-]{1,40}")


def find_delimiter(first: str, suffix: str, wanted: Sequence[str]) -> str | None:
    """The delimiter of a table, by the ending of its name or by its header; ``None`` for no table.

    Args:
        first: the first line.
        wanted: columns of which a header has at least one. A file without the ending of a table needs
            another column beside it, because a text may consist of that word.
    """
    usual = DELIMITERS.get(suffix)
    for delimiter in dict.fromkeys([usual or ",", *_OTHERS]):
        header = _cells(first, delimiter)
        if any(find_column(header, name) is not None for name in wanted) and (
            usual is not None or (len(header) > 1 and all(map(_HEADING.fullmatch, header)))
        ):
            return delimiter
    return usual


def form_of(delimiter: str) -> str:
    """The name of a table's form."""
    return _FORMS.get(delimiter, f"a table with {delimiter!r} between its cells")


def read_table(text: str, name: str, delimiter: str) -> tuple[tuple[str, ...], Iterator[Record]]:
    """The columns of a table and its rows as objects.

    Raises:
        DataError: the header has a name twice. Rows of other lengths and open quotes raise it while reading.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = tuple(next((row for row in _rows(reader) if row), []))
    except csv.Error as error:
        raise DataError(f"{name}: the header cannot be read: {error}") from error
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise DataError(f"{name} has column {twice[0]!r} twice; rename one of them")
    return header, _records(reader, header, name)


def _records(reader: Reader, header: tuple[str, ...], name: str) -> Iterator[Record]:
    begin = reader.line_num
    try:
        for row in _rows(reader):
            where, begin = f"{name}:{begin + 1}", reader.line_num
            if not row:  # a blank line
                continue
            if len(row) != len(header):
                count = "fewer" if len(row) < len(header) else "more"
                raise DataError(
                    f"{where} has {count} columns than the header: {len(row)}, not {len(header)}; put "
                    "quotes around texts that contain the delimiter, a quote or a line end"
                )
            yield Record(where, dict(zip(header, row, strict=True)))
    except csv.Error as error:  # for example, a quote that is never closed
        raise DataError(
            f"{name}, after line {begin}: {error}; a quoted text begins and ends with a quote next to the "
            'delimiters, and quotes within it are doubled: "say ""yes"""'
        ) from error


def _rows(reader: Reader) -> Iterator[list[str]]:
    """The rows, however long their cells: the library's limit, which holds for the process, is lifted."""
    while True:
        before = csv.field_size_limit(sys.maxsize)
        try:
            row = next(reader, None)
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        yield row


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []
