"""Records of Parquet and Arrow files, which pyarrow reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vbon.errors import DataError
from vbon.record_files.content import Content
from vbon.record_files.records import Record, RecordFile, find_column

_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_MAGIC = {_PARQUET: "Parquet", _ARROW_FILE: "an Arrow file", _ARROW_STREAM: "an Arrow stream"}
_BATCH = 1024


def columnar_form(content: Content) -> str | None:
    """The name of a columnar form, by the first bytes; ``None`` for other files.

    Raises:
        DataError: the name says Parquet and the content is something else.
    """
    if content.dataset:
        return "a dataset on disk"
    for magic, form in _MAGIC.items():
        if content.parts[0].startswith(magic):
            return form
    if content.suffix in {".parquet", ".arrow"} and content.parts[0]:
        raise DataError(f"{content.name} is not a {content.suffix[1:].capitalize()} file")
    return None


def read_columnar(content: Content, form: str, wanted: Sequence[str]) -> RecordFile:
    """The rows of a columnar file as objects with the wanted columns.

    Raises:
        DataError: pyarrow is not installed, or the file is damaged.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"{content.name} is {form}, which needs pyarrow; install it with `pip install pyarrow` or "
            "vbon[parquet], or export the file as JSON lines"
        ) from error
    try:
        columns = _columns(content)
        twice = [name for name in wanted if columns.count(name) > 1]
        if twice:
            raise DataError(f"{content.name} has column {twice[0]!r} twice; rename one of them")
        chosen = [found for name in wanted if (found := find_column(columns, name)) is not None]
        rows = _rows(content, chosen)
        records = (
            Record(f"{content.name}, record {n}", row) for n, row in enumerate(rows, start=1)
        )
        return RecordFile(
            content.name, form, _translated(records, content.name), content.sha256, columns
        )
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged(content.name, error) from error


def _columns(content: Content) -> tuple[str, ...]:
    if not content.parts:
        return ()
    if content.parts[0].startswith(_PARQUET):
        return tuple(_parquet(content.parts[0]).schema_arrow.names)
    return tuple(_arrow(content.parts[0]).schema.names)


def _rows(content: Content, columns: list[str]) -> Iterator[dict[str, Any]]:
    for part in content.parts:
        if part.startswith(_PARQUET):
            batches = _parquet(part).iter_batches(batch_size=_BATCH, columns=columns)
        else:
            batches = iter(_arrow(part).read_all().select(columns).to_batches(_BATCH))
        for batch in batches:
            yield from batch.to_pylist()


def _parquet(data: bytes) -> Any:
    import pyarrow
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))


def _arrow(data: bytes) -> Any:
    import pyarrow

    opened = pyarrow.ipc.open_file if data.startswith(_ARROW_FILE) else pyarrow.ipc.open_stream
    return opened(pyarrow.BufferReader(data))


def _translated(records: Iterator[Record], name: str) -> Iterator[Record]:
    """The records, with pyarrow's errors as ours."""
    import pyarrow

    try:
        yield from records
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> DataError:
    said = str(error).strip().split("\n")[0]
    return DataError(f"{name} is damaged or truncated: {said}")
