"""Reads a user's labelled texts: liked and disliked ones, from the files that ``vbon.record_files`` reads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vbon.errors import DataError
from vbon.prompt_files import check_text, counted
from vbon.record_files.read import read_records
from vbon.record_files.records import Record, RecordFile, describe_value, find_column, listed

logger = logging.getLogger(__name__)

TEXT, LABEL = "text", "label"
_LABEL_BY_SUFFIX = {".pos": 1, ".neg": 0}
# Spellings of labels in any case; true and 1.0 are equal to 1 in Python and need no entry.
_WORDS = {
    **dict.fromkeys(("1", "1.0", "true", "pos", "positive"), 1),
    **dict.fromkeys(("0", "0.0", "false", "neg", "negative"), 0),
}


def read_labelled(specs: list[str], encoding: str | None) -> list[tuple[str, int]]:
    """Read ``(text, label)`` pairs from several files.

    Duplicates are dropped, and so are texts that have both labels; both are counted in the log.

    Args:
        specs: paths, or ``PATH=LABEL`` if all texts of a file have one label. A directory stands for its
            files that end in ``.pos`` or ``.neg``, if it has any.
        encoding: of the files; by default that of their byte order mark, or UTF-8.

    Returns:
        Label 1 is for liked, 0 for disliked.

    Raises:
        DataError: a file is missing or of an unknown form, a label is invalid, or all labels are equal.
    """
    found: dict[str, tuple[int, str]] = {}
    contradicted: dict[str, tuple[str, str]] = {}
    duplicates = 0
    for file in [file for spec in specs for file in _files_of(spec)]:
        for text, label, where in _read_file(file, encoding):
            if text not in found:
                found[text] = (label, where)
            elif found[text][0] == label:
                duplicates += 1
            else:
                contradicted.setdefault(text, (found[text][1], where))
    if duplicates:
        logger.info("%s dropped", counted(duplicates, "duplicate"))
    if contradicted:
        text, places = next(iter(contradicted.items()))
        logger.warning(
            "%s with both labels left out; the first is %r, at %s and %s",
            counted(len(contradicted), "text"),
            text[:80],
            *places,
        )
    pairs = [(text, label) for text, (label, _) in found.items() if text not in contradicted]
    labels = {label for _, label in pairs}
    if not labels and contradicted:
        raise DataError(
            f"{', '.join(specs)}: every text has both labels; give each file one label, and each text once"
        )
    if labels != {0, 1}:
        raise DataError(
            f"{', '.join(specs)}: found only labels {sorted(labels)}, but both 0 and 1 are needed; "
            "add texts of the other label"
        )
    return pairs


def _files_of(spec: str) -> list[str]:
    """The labelled files of a directory; any other file or directory is one by itself."""
    place = Path(spec)
    if not place.is_dir():
        return [spec]
    found = [file for file in place.iterdir() if file.suffix in _LABEL_BY_SUFFIX and file.is_file()]
    return [str(file) for file in sorted(found)] or [spec]


def _read_file(spec: str, encoding: str | None) -> Iterator[tuple[str, int, str]]:
    """Each text with its label and place; logs how many there were. Blank texts are skipped."""
    path, fixed = _split(spec)
    file = read_records(path, (TEXT, LABEL), encoding=encoding, what="corpus file")
    _check_columns(file, fixed)
    counts, blank = [0, 0], 0
    for record in file.records:
        text, label = _pair(record, fixed, path)
        text = " ".join(text.split())
        if not text:
            blank += 1
            continue
        counts[label] += 1
        yield text, label, record.where
    logger.info(
        "%s: %s from %s, %d liked and %d disliked%s",
        file.name,
        counted(sum(counts), "text"),
        file.form,
        counts[1],
        counts[0],
        f"; {counted(blank, 'blank text')} left out" if blank else "",
    )


def _split(spec: str) -> tuple[Path, int | None]:
    name, separator, label = spec.rpartition("=")
    if separator and label in {"0", "1"} and not Path(spec).exists():
        return Path(name), int(label)
    suffixes = [suffix for suffix in Path(spec).suffixes if suffix in _LABEL_BY_SUFFIX]
    return Path(spec), _LABEL_BY_SUFFIX[suffixes[-1]] if suffixes else None


def _check_columns(file: RecordFile, fixed: int | None) -> None:
    if file.columns is None:
        return
    needed = [TEXT] if fixed is not None else [TEXT, LABEL]
    if not all(find_column(file.columns, name) for name in needed):
        raise DataError(
            f"{file.name} must have a header with {' and '.join(needed)}, but has {listed(file.columns)}; "
            "rename its columns"
        )


def _pair(record: Record, fixed: int | None, path: Path) -> tuple[str, int]:
    value, where = record.value, record.where
    if isinstance(value, str):
        if fixed is None:
            raise DataError(
                f"cannot tell the labels of {path} (at {where}): write {path}=1 or {path}=0 if all its texts "
                "have one label, or give JSON, CSV, TSV or Parquet with text and label"
            )
        text, label = value, fixed
    elif isinstance(value, dict):
        text = _text(_value(value, TEXT, where), where)
        label = _labelled(value, fixed, where)
    else:
        raise DataError(f'{where} is not a JSON object with "text" and "label"')
    check_text(text, where)
    return text, label


def _value(record: dict[str, Any], name: str, where: str) -> Any:
    key = find_column(list(record), name)
    if key is None:
        raise DataError(
            f'{where} is not a JSON object with "text" and "label", but has {listed(list(record))}'
        )
    return record[key]


def _text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    raise DataError(f'{where}: "text" must be a string, but is {describe_value(value)}')


def _labelled(record: dict[str, Any], fixed: int | None, where: str) -> int:
    if fixed is None:
        return _label(_value(record, LABEL, where), where)
    if find_column(list(record), LABEL) is not None:
        raise DataError(
            f"{where} has a label of its own, but the file was given with ={fixed}; leave out ={fixed}"
        )
    return fixed


def _label(value: object, where: str) -> int:
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return int(value)
    label = _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if label is None:
        raise DataError(
            f"{where}: label {describe_value(value)} is neither 0 nor 1, nor true, false, positive or "
            "negative"
        )
    return label
