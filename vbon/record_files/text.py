"""Records of text files: lines of text, JSON lines, and JSON documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vbon.errors import DataError
from vbon.record_files.records import Record, find_column

_MARK = "\ufeff"
_JSON_SPACE = re.compile(r"[ \t\n\r]*")
# A text may begin with a bracket, as in "[INST] ..."; an array of records begins like this.
_ARRAY = re.compile(r'\[\s*($|[{"\]])')


def split_lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place as ``FILE:LINE``.

    Lines end at a line feed, with or without a carriage return. ``str.splitlines`` also splits at
    characters that a text may contain. A byte order mark at the start of a line is left out: it stays where
    files were joined.

    Raises:
        DataError: the lines end in carriage returns alone, so the whole file would be one line.
    """
    if "\n" not in text and "\r" in text.rstrip("\r"):
        raise DataError(
            f"{name} has carriage returns and no line feeds; convert its line ends, for example with "
            "`mac2unix`"
        )
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r").removeprefix(_MARK)
        if line.strip():
            yield f"{name}:{number}", line


def text_lines(text: str, name: str) -> Iterator[Record]:
    """Every line as a text."""
    for where, line in split_lines(text, name):
        yield Record(where, line)


def json_lines(text: str, name: str, *, only: bool) -> Iterator[Record]:
    """Every line as a JSON value.

    Args:
        only: False to take lines that do not begin with ``{`` as text.

    Raises:
        DataError: a line is not JSON.
    """
    for where, line in split_lines(text, name):
        if only or line.lstrip().startswith("{"):
            yield Record(where, _parse(line, where, only))
        else:
            yield Record(where, line)


def _parse(line: str, where: str, only: bool) -> Any:
    try:
        return json.loads(line)
    except RecursionError as error:
        raise DataError(
            f"{where} is not a JSON object that can be read: it nests too deeply"
        ) from error
    except ValueError as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        remedy = (
            "if the lines of this file are texts, give it the ending .txt"
            if only
            else "if it is a text that begins with {, write it as a JSON string in an object"
        )
        raise DataError(f"{where} is not a JSON object ({said}{at}); {remedy}") from error


def is_array(first: str) -> bool:
    """True if the first line of a file begins a JSON array of records."""
    return _ARRAY.match(first.lstrip()) is not None


def is_complete(line: str, wanted: Sequence[str]) -> bool:
    """True if a line is a whole JSON value, so that the file has one on each line.

    An array and an object with its records in ``data`` are documents instead.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not isinstance(value, list) and _wrapped(value, wanted) is None


def json_documents(text: str, name: str, wanted: Sequence[str]) -> tuple[str, Iterator[Record]]:
    """The form and records of a JSON array, or of JSON values one after the other, indented or not.

    Raises:
        DataError: the text is not valid JSON.
    """
    values = list(_documents(text, name))
    form = "a JSON array"
    wrapped = _wrapped(values[0], wanted) if len(values) == 1 else None
    if wrapped is not None:
        form, values = 'a JSON object with the records in "data"', wrapped
    elif len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    else:
        form = "a JSON object" if len(values) == 1 else "JSON objects"
    records = (Record(f"{name}, record {n}", value) for n, value in enumerate(values, start=1))
    return form, records


def _wrapped(value: Any, wanted: Sequence[str]) -> list[Any] | None:
    """The records of an object that holds them in ``data``, and is not a record with a wanted key itself."""
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        return None
    if any(find_column(list(value), name) for name in wanted):
        return None
    found: list[Any] = value["data"]
    return found


def _documents(text: str, name: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    while (at := _space(text, at)) < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except RecursionError as error:
            raise DataError(f"{name} is not JSON that can be read: it nests too deeply") from error
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name}:{error.lineno} is not valid JSON ({error.msg} at column {error.colno}); "
                f"{_remedy(text, error)}"
            ) from error
        except ValueError as error:  # a number with thousands of digits
            raise DataError(f"{name} is not valid JSON ({error})") from error
        yield value


def _remedy(text: str, error: json.JSONDecodeError) -> str:
    """The remedy for a text that is not JSON."""
    at = error.pos
    if not text[at:].strip() or error.msg.startswith("Unterminated"):
        return "the file may be truncated"
    before, here = text[:at].rstrip(), text[at:].lstrip()[:1]
    if here == "," or (here in "]}" and before.endswith(",")):
        return (
            "JSON has no comma after the last item, nor between the values of JSON lines; remove it"
        )
    return "write it as JSON: texts and keys in double quotes, commas between items, no comments"


def _space(text: str, at: int) -> int:
    found = _JSON_SPACE.match(text, at)
    return at if found is None else found.end()
