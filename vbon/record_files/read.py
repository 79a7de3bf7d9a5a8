"""The one reader of record files: finds the form of a file and yields its records.

The content decides the form where it can: compression, Parquet, Arrow, JSON documents. The ending of the
name decides the rest: .json, .jsonl and .ndjson hold JSON alone, .csv and .tsv are tables with a header,
and every other file has one text a line, or JSON in the lines that begin with ``{``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vbon.errors import DataError
from vbon.record_files.columnar import columnar_form, read_columnar
from vbon.record_files.content import Content, read_content
from vbon.record_files.encoding import decode_text
from vbon.record_files.records import RecordFile
from vbon.record_files.tables import find_delimiter, form_of, read_table
from vbon.record_files.text import (
    is_array,
    is_complete,
    json_documents,
    json_lines,
    split_lines,
    text_lines,
)

_JSON = {".json", ".jsonl", ".ndjson"}
_TEXT = {".txt", ".text", ".pos", ".neg"}


def read_records(
    path: Path, wanted: Sequence[str], *, encoding: str | None = None, what: str = "file"
) -> RecordFile:
    """Read a file, standard input (``-``), or a dataset directory.

    Args:
        wanted: columns that the reader of the records looks for.
        encoding: of a text file; by default its byte order mark's, or UTF-8.
        what: the kind of file for messages, such as ``"prompt file"``.

    Raises:
        DataError: the file is missing, unreadable or damaged; the message names the place. Damaged records
            raise it while the records are read.
    """
    content = read_content(path, what)
    form = columnar_form(content)
    if form is not None:
        return read_columnar(content, form, wanted)
    text = decode_text(content.parts[0], content.name, encoding)
    return _read_text(content, text, wanted)


def _read_text(content: Content, text: str, wanted: Sequence[str]) -> RecordFile:
    name, suffix, digest = content.name, content.suffix, content.sha256
    first = next((line for _, line in split_lines(text, name)), None)
    if first is None:
        return RecordFile(name, "an empty file", iter(()), digest)
    if suffix not in _TEXT | _JSON:
        delimiter = find_delimiter(first, suffix, wanted)
        if delimiter is not None:
            columns, rows = read_table(text, name, delimiter)
            return RecordFile(name, form_of(delimiter), rows, digest, columns)
    if suffix in _JSON or first.lstrip().startswith("{") or is_array(first):
        if not is_complete(first, wanted):
            try:
                form, records = json_documents(text, name, wanted)
                return RecordFile(name, form, records, digest)
            except DataError:
                # A damaged line among JSON lines is named better by the reader of lines.
                if suffix not in _JSON and not is_array(first):
                    return RecordFile(
                        name, "JSON lines", json_lines(text, name, only=False), digest
                    )
                raise
        only = suffix in _JSON
        return RecordFile(name, "JSON lines", json_lines(text, name, only=only), digest)
    if any(line.lstrip().startswith("{") for _, line in split_lines(text, name)):
        form = "lines of text and JSON"
        return RecordFile(name, form, json_lines(text, name, only=False), digest)
    return RecordFile(name, "lines of text", text_lines(text, name), digest)
