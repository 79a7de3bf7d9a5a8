"""The file that ``sample`` writes: resuming it, appending lines, and putting them in order."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from training.cache.jsonl import parse
from training.cache.metadata import check_content
from training.configs import SampleConfig
from training.outputs.identity import is_same_output, read_undamaged_record
from vbon.errors import DataError
from vbon.prompts import Prompt
from vbon.storage.atomic import read_errors, write_errors, write_json
from vbon.storage.cache_metadata import metadata_path
from vbon.storage.checksums import sha256_of

logger = logging.getLogger(__name__)

# The bytes of each prompt's line, in the order of the file.
LinePlaces = dict[str, range]


def find_finished_lines(
    config: SampleConfig, identity: dict[str, Any], partial: Path
) -> LinePlaces:
    """Find the lines that an earlier run with the same settings has finished.

    An incomplete last line is cut off. With ``replace``, a cache that cannot be continued is ignored.

    Raises:
        DataError: a line is damaged (the message names it), or the cache was made with other settings.
    """
    for source in (partial, config.out):
        if not source.exists():
            continue
        try:
            _check_source(config.out, source, identity)
        except DataError as error:
            if not config.replace:
                raise
            logger.warning("%s. Sampling it again, because of --replace", error)
            if source == partial:  # a finished cache stays until the new one takes its name
                partial.unlink()
            continue
        with write_errors(source):
            return _complete_lines(source, config.max_new_tokens)
    return {}


def _check_source(out: Path, source: Path, identity: dict[str, Any]) -> None:
    """Check that a cache, finished or not, was sampled with these settings.

    Raises:
        DataError: the cache is damaged, was made with other settings, or has no metadata.
    """
    recorded = read_undamaged_record(metadata_path(source))
    if recorded is None and source != out:  # earlier versions had one metadata file for both
        recorded = read_undamaged_record(metadata_path(out))
    if recorded is None or "identity" not in recorded:
        raise DataError(
            f"{source} has no {metadata_path(source).name} that says how it was sampled; choose another "
            "--out, or sample it again with --replace"
        )
    is_same_output(source, recorded["identity"], identity, replace=False)
    if source == out and "sha256" in recorded:
        with read_errors(source):
            check_content(source, recorded, sha256_of(source))


def _complete_lines(path: Path, max_new_tokens: int) -> LinePlaces:
    kept, found = 0, LinePlaces()
    with read_errors(path), path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.endswith(b"\n"):
                break  # the process that wrote it was killed
            where = f"{path}:{number}"
            try:
                prompt = parse(line, where, max_new_tokens).prompt.key
            except DataError as error:
                raise DataError(f"{error}; delete that line to have it sampled again") from error
            if prompt in found:
                first = list(found).index(prompt) + 1
                raise DataError(f"{where} repeats the prompt of line {first}; delete one of them")
            found[prompt] = range(kept, kept + len(line))
            kept += len(line)
    if kept < path.stat().st_size:
        os.truncate(path, kept)
    return found


def begin_partial(
    out: Path, partial: Path, metadata: dict[str, Any], *, extends_finished: bool
) -> None:
    """Create the partial file and its metadata.

    The metadata is written first, so that a partial file is never taken for one of other settings.

    Args:
        extends_finished: True to continue the finished cache, because prompts were added.
    """
    write_json(metadata_path(partial), metadata)
    if not partial.exists():
        if extends_finished:
            out.replace(partial)
        else:
            partial.touch()


def finish_cache(
    out: Path, partial: Path, metadata: dict[str, Any], prompts: list[Prompt], lines: LinePlaces
) -> None:
    """Put the lines in the order of the prompts and give the file its final name.

    Lines of prompts that are no longer wanted come last.
    """
    keys = dict.fromkeys([*(prompt.key for prompt in prompts), *lines])
    places = [lines[key] for key in keys]
    complete = partial
    if any(one.stop != other.start for one, other in pairwise(places)):
        complete = out.with_name(out.name + ".ordered")
        _copy(partial, complete, places)
    # Written before the rename, so that a cache never lacks the metadata of its content.
    write_json(metadata_path(out), metadata | {"sha256": sha256_of(complete)})
    complete.replace(out)
    partial.unlink(missing_ok=True)
    metadata_path(partial).unlink(missing_ok=True)


def _copy(source: Path, target: Path, places: list[range]) -> None:
    """Copy parts of a file in the given order; on an error, leave no target."""
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            for place in places:
                reader.seek(place.start)
                writer.write(reader.read(len(place)))
            writer.flush()
            os.fsync(writer.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        raise


def append_line(handle: FileIO, path: Path, line: bytes) -> range:
    """Append a complete line and flush it to disk; on an error, leave the file as it was.

    Returns:
        The bytes that the line occupies.

    Raises:
        ExportError: the disk is full, or the file cannot be written.
    """
    end = handle.seek(0, os.SEEK_END)
    with write_errors(path):
        try:
            left = memoryview(line)
            while left:
                left = left[handle.write(left) :]
            os.fsync(handle.fileno())
            return range(end, end + len(line))
        except OSError:
            with suppress(OSError):  # if this fails too, the next run cuts off the incomplete line
                os.truncate(path, end)
            raise
