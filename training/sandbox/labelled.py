"""Reads a user's labelled texts from plain text, JSONL, CSV or TSV files."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from vbon.errors import DataError
from vbon.prompt_files import check_text
from vbon.storage.atomic import read_errors

logger = logging.getLogger(__name__)

_LABEL_BY_SUFFIX = {".pos": 1, ".neg": 0}
_DELIMITER = {".csv": ",", ".tsv": "\t"}


def read_labelled(specs: list[str], encoding: str | None) -> list[tuple[str, int]]:
    """Read ``(text, label)`` pairs from several files; duplicates are dropped.

    Args:
        specs: paths, or ``PATH=LABEL`` if all lines of a text file have one label.
        encoding: of the files; UTF-8 if not given, or Latin-1 for a file that is not UTF-8.

    Returns:
        Label 1 is for liked, 0 for disliked.

    Raises:
        DataError: a file is missing or of an unknown form, a label is invalid, or all labels are equal.
    """
    pairs: dict[str, int] = {}
    for spec in specs:
        path, label = _split(spec)
        for text, found in _read(path, label, encoding):
            if text.strip():
                pairs.setdefault(" ".join(text.split()), found)
    labels = set(pairs.values())
    if labels != {0, 1}:
        raise DataError(
            f"{', '.join(specs)}: found only labels {sorted(labels)}, but both 0 and 1 are needed; "
            "add texts of the other label"
        )
    return list(pairs.items())


def _split(spec: str) -> tuple[Path, int | None]:
    name, separator, label = spec.rpartition("=")
    if separator and label in {"0", "1"}:
        return Path(name), int(label)
    return Path(spec), _LABEL_BY_SUFFIX.get(Path(spec).suffix)


def _read(path: Path, label: int | None, encoding: str | None) -> Iterator[tuple[str, int]]:
    with read_errors(path):
        if not path.is_file():
            raise DataError(f"corpus file {path} does not exist")
        raw = path.read_bytes()
    text = _decode(path, raw, encoding)
    if label is not None:
        yield from ((line, label) for line in text.splitlines())
    elif path.suffix in {".jsonl", ".json"}:
        yield from _read_jsonl(path, text)
    elif path.suffix in _DELIMITER:
        yield from _read_table(path, text, _DELIMITER[path.suffix])
    else:
        raise DataError(
            f"cannot tell the labels of {path}: write {path}=1 or {path}=0 if all its lines have one "
            "label, or give a .jsonl, .csv or .tsv file with text and label"
        )


def _decode(path: Path, raw: bytes, encoding: str | None) -> str:
    try:
        return raw.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is None:
            logger.info("%s is not UTF-8; reading it as Latin-1", path)
            return raw.decode("latin-1")
        raise DataError(f"{path} is not {encoding}: {error}") from error
    except LookupError as error:
        raise DataError(
            f"unknown encoding {encoding!r}; use a name that Python knows, such as utf-8 or latin-1"
        ) from error


def _label(value: object, where: str) -> int:
    if str(value) in {"0", "1"}:
        return int(str(value))
    raise DataError(f"{where}: label {value!r} is neither 0 nor 1")


def _read_jsonl(path: Path, text: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
            content, value = str(record["text"]), record["label"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise DataError(f'{where} is not a JSON object with "text" and "label"') from error
        check_text(content, where)
        yield content, _label(value, where)


def _read_table(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, int]]:
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    try:
        if not {"text", "label"} <= set(reader.fieldnames or ()):
            raise DataError(
                f"{path} must have a header with text and label, but has {reader.fieldnames}"
            )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if row["text"] is None or row["label"] is None:
                raise DataError(f"{where} has fewer columns than the header")
            yield row["text"], _label(row["label"], where)
    except csv.Error as error:  # for example, a quote that is never closed makes a field too large
        raise DataError(f"{path}, after line {reader.line_num}: {error}") from error
