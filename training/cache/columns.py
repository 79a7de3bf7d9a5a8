"""The reward cache as columns: ``.npy`` files beside the JSONL, compiled once and memory-mapped.

P prompts (rows) in the order they first appear, S samples, those of a row together and in the order
of the file. Two lines are one row when their prompts have the same token ids.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from training.cache import jsonl as cache_lines
from training.cache.jsonl import Line
from training.outputs.identity import read_json_record
from vbon.errors import DataError, ExportError
from vbon.storage.atomic import read_errors, replacing_directory, write_json
from vbon.storage.checksums import checksums_of, find_damage, is_sealed, sealed

logger = logging.getLogger(__name__)

VERSION = 2
INDEX = "index.json"
PROMPTS = "prompts.jsonl"
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Columns:
    """Each a file of its name.

    Attributes:
        prompt_ids: int32, flat; row r is ``prompt_ids[prompt_offsets[r] : prompt_offsets[r + 1]]``.
        text_offsets: int64 (P+1,), bytes of the rows in ``prompts.jsonl``.
        keys: S16 (P,), :func:`key_of` every row, ascending; ``key_rows`` are their rows.
        offsets: int64 (P+1,), samples of the rows.
        rewards: float64 (S,), as in the file; ``sorted_rewards`` ascending within each row.
        distinct: int32 (P,), how many different rewards a row has.
        has_responses: bool (P,), whether all samples of a row came with their response.
        response_ids: int32, flat, by ``response_offsets`` int64 (S+1,); (1,) if there are none.
    """

    prompt_ids: NDArray[np.int32]
    prompt_offsets: NDArray[np.int64]
    text_offsets: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    key_rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    rewards: NDArray[np.float64]
    sorted_rewards: NDArray[np.float64]
    distinct: NDArray[np.int32]
    has_responses: NDArray[np.bool_]
    response_ids: NDArray[np.int32]
    response_offsets: NDArray[np.int64]
    prompts: NDArray[np.uint8]

    @classmethod
    def load(cls, directory: Path, mmap_mode: Literal["r"] | None = "r") -> Columns:
        """Mapped, or with ``mmap_mode=None`` read whole.

        Raises:
            OSError, ValueError: a file is missing, cut short or of other data.
        """
        # asarray: slices of the subclass memmap cost several times those of a plain array.
        arrays: dict[str, Any] = {
            field.name: np.asarray(np.load(directory / f"{field.name}.npy", mmap_mode=mmap_mode))
            for field in fields(cls)
            if field.name != "prompts"
        }
        text = directory / PROMPTS
        prompts = np.memmap(text, np.uint8, mode="r") if mmap_mode else np.fromfile(text, np.uint8)
        columns = cls(**arrays, prompts=np.asarray(prompts))
        for offsets, flat in (
            (columns.prompt_offsets, columns.prompt_ids),
            (columns.text_offsets, columns.prompts),
            (columns.offsets, columns.rewards),
            (columns.offsets, columns.sorted_rewards),
            (columns.response_offsets, columns.response_ids),
        ):
            if offsets[-1] != len(flat):
                raise ValueError(f"{directory} does not fit together")
        return columns


def key_of(ids: Sequence[int]) -> bytes:
    """What a prompt is looked up by: 16 bytes of its token ids."""
    return hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=16).digest()


def create_column(path: Path, dtype: type[np.generic], length: int) -> NDArray[Any]:
    """A new ``.npy`` file, mapped for writing.

    Raises:
        OSError: on a full disk; without reserving the space, writing would be a SIGBUS.
    """
    mapped = open_memmap(path, mode="w+", dtype=dtype, shape=(length,))  # type: ignore[no-untyped-call]
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return np.asarray(mapped)


def columns_path(cache: Path) -> Path:
    """Where a cache's columns are."""
    return cache.with_name(cache.name + ".columns")


def open_columns(
    path: Path, tokenizer: Any, max_new_tokens: int, vocab_size: int | None = None
) -> tuple[Columns, dict[str, Any]]:
    """The columns of a JSONL cache and their index, compiled first unless they are there.

    Args:
        vocab_size: token ids from there on are refused when the columns are compiled.

    Raises:
        DataError: on a missing, unreadable, empty or malformed file; names the line.
        ExportError: if the columns cannot be written.
    """
    directory = columns_path(path)
    wanted = {
        "version": VERSION,
        "tokenizer": cache_lines.fingerprint(tokenizer),
        "max_new_tokens": max_new_tokens,
    }
    if vocab_size is not None:
        wanted["vocab_size"] = vocab_size
    with read_errors(path):
        if not path.is_file():
            raise DataError(f"reward cache {path} does not exist; make it with `sample`")
        opened = path.open("rb")
    with opened as source:
        # Two runs on one cache: the second waits for the first. Some network file systems refuse.
        with suppress(OSError):
            fcntl.flock(source, fcntl.LOCK_EX)
        found = _current(source, directory, wanted)
        if found is None:
            _compile(source, path, directory, wanted, tokenizer)
            found = Columns.load(directory), json.loads((directory / INDEX).read_text("utf-8"))
    return found


def _current(
    source: BufferedReader, directory: Path, wanted: dict[str, Any]
) -> tuple[Columns, dict[str, Any]] | None:
    """Whole columns of this file, if there are any; reads each of them once."""
    index = _index(directory)
    if index is None or any(index.get(name) != value for name, value in wanted.items()):
        return None
    try:
        wrong = find_damage(directory, index["columns"])
        columns = None if wrong else Columns.load(directory)
    except (OSError, ValueError) as error:
        wrong, columns = str(error), None
    if columns is None:
        logger.warning("%s; compiling it again", wrong)
        return None
    stat = _stat(source)
    if stat != {name: index.get(name) for name in stat}:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
        source.seek(0)
        if digest != index.get("sha256"):
            return None
        index |= stat
        with suppress(ExportError):  # only saves reading the file the next time
            _write_index(directory, index)
    return columns, index


def source_digest(path: Path) -> str:
    """A JSONL cache's sha256 in hex: as its columns recorded it, if the file is as it was then.

    Raises:
        DataError: it cannot be read.
    """
    index = _index(columns_path(path)) or {}
    with read_errors(path), path.open("rb") as source:
        stat = _stat(source)
        if "sha256" in index and stat == {name: index.get(name) for name in stat}:
            return str(index["sha256"])
        return hashlib.file_digest(source, "sha256").hexdigest()


def _index(directory: Path) -> dict[str, Any] | None:
    """What the columns were compiled from, ``None`` if there is none or it is damaged."""
    index = read_json_record(directory / INDEX)
    return index if index is not None and is_sealed(index) else None


def _write_index(directory: Path, index: dict[str, Any]) -> None:
    write_json(directory / INDEX, sealed({k: v for k, v in index.items() if k != "seal"}))


def _stat(source: BufferedReader) -> dict[str, int]:
    """Tells another file, or another content, from this one.

    Times of modification alone do not: a clock may jump, and they are copied with files.
    """
    stat = os.fstat(source.fileno())
    return {
        "source_bytes": stat.st_size,
        "source_mtime_ns": stat.st_mtime_ns,
        "source_ctime_ns": stat.st_ctime_ns,
        "source_inode": stat.st_ino,
    }


def _compile(
    source: BufferedReader, path: Path, directory: Path, wanted: dict[str, Any], tokenizer: Any
) -> None:
    stat = _stat(source)
    digest = hashlib.sha256()
    with (
        replacing_directory(directory) as partial,
        cache_lines.progress_bar(path.name, stat["source_bytes"]) as advance,
    ):
        raw = cache_lines.raw_lines(source, path, digest, advance)
        lines = cache_lines.tokenised(
            raw, tokenizer, wanted["max_new_tokens"], wanted.get("vocab_size")
        )
        write_columns(partial, lines)
        index = {**wanted, **stat, "sha256": digest.hexdigest(), "columns": checksums_of(partial)}
        _write_index(partial, index)


class _Spool:
    """Lines as they come; what grows with the samples goes to files.

    A run is a stretch of consecutive samples of one row: ``(row, samples, response tokens)``.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.rows: dict[bytes, int] = {}
        self.samples: list[int] = []
        self.complete: list[bool] = []
        self.prompt_lengths: list[int] = []
        self.text_lengths: list[int] = []
        self._run: list[int] | None = None
        self._directory = directory
        self._files = {
            name: stack.enter_context((directory / f"{name}.spool").open("w+b"))
            for name in ("runs", "prompt_ids", "rewards", "lengths", "tokens")
        }
        self._prompts = stack.enter_context((directory / PROMPTS).open("wb"))

    def add(self, line: Line) -> None:
        row = self.rows.setdefault(key_of(line.ids), len(self.rows))
        if row == len(self.samples):
            self._add_prompt(line)
        count, tokens = len(line.rewards), 0
        self.samples[row] += count
        self._files["rewards"].write(line.rewards.tobytes())
        lengths = np.zeros(count, dtype=np.int32)
        if line.responses is None:
            self.complete[row] = False
        else:
            lengths[:] = [len(response) for response in line.responses]
            flat = [token for response in line.responses for token in response]
            tokens = len(flat)
            self._files["tokens"].write(np.asarray(flat, dtype=np.int32).tobytes())
        self._files["lengths"].write(lengths.tobytes())
        if self._run is not None and self._run[0] == row:
            self._run[1] += count
            self._run[2] += tokens
        else:
            self._end_run()
            self._run = [row, count, tokens]

    def _add_prompt(self, line: Line) -> None:
        self.samples.append(0)
        self.complete.append(True)
        self.prompt_lengths.append(len(line.ids))
        self._files["prompt_ids"].write(np.asarray(line.ids, dtype=np.int32).tobytes())
        prompt = line.prompt
        record = {"messages": prompt.messages} if prompt.messages else {"prompt": prompt.text}
        self.text_lengths.append(self._prompts.write(json.dumps(record).encode() + b"\n"))

    def _end_run(self) -> None:
        if self._run is not None:
            self._files["runs"].write(np.asarray(self._run, dtype=np.int64).tobytes())

    def finish(self) -> None:
        self._end_run()
        for file in (*self._files.values(), self._prompts):
            file.flush()

    def read(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        """What was spooled under a name, mapped."""
        path = self._directory / f"{name}.spool"
        if not path.stat().st_size:
            return np.empty(0, dtype)
        return np.asarray(np.memmap(path, dtype, mode="r"))

    def remove(self) -> None:
        for name in self._files:
            (self._directory / f"{name}.spool").unlink()


def write_columns(directory: Path, lines: Iterable[Line]) -> None:
    """Write all columns into a directory; holds the prompts' keys in memory, nothing larger."""
    with ExitStack() as stack:
        spool = _Spool(directory, stack)
        for line in lines:
            spool.add(line)
        if not spool.rows:
            raise DataError("the reward cache is empty; run `python -m training sample` first")
        spool.finish()
        _write_prompts(directory, spool)
        _write_samples(directory, spool)
    spool.remove()


def _write_prompts(directory: Path, spool: _Spool) -> None:
    keys = np.array(list(spool.rows), dtype="S16")
    order = np.argsort(keys)
    for name, values in (
        ("keys", keys[order]),
        ("key_rows", order.astype(np.int64)),
        ("offsets", _offsets(spool.samples)),
        ("prompt_offsets", _offsets(spool.prompt_lengths)),
        ("text_offsets", _offsets(spool.text_lengths)),
        ("has_responses", np.array(spool.complete)),
        ("prompt_ids", spool.read("prompt_ids", np.int32)),
    ):
        np.save(directory / f"{name}.npy", values)


def _write_samples(directory: Path, spool: _Spool) -> None:
    """Pools the runs of each row, then sorts."""

    def column(name: str, dtype: type[np.generic], length: int) -> NDArray[Any]:
        return create_column(directory / f"{name}.npy", dtype, length)

    offsets = _offsets(spool.samples)
    runs = spool.read("runs", np.int64).reshape(-1, 3)
    spooled, lengths = spool.read("rewards", np.float64), spool.read("lengths", np.int32)
    tokens = spool.read("tokens", np.int32)
    usable = any(spool.complete)
    rewards = column("rewards", np.float64, len(spooled))
    response_offsets = column("response_offsets", np.int64, len(spooled) + 1 if usable else 1)
    response_ids = column("response_ids", np.int32, len(tokens) if usable else 0)
    for start, at, count, _, _ in _placed(runs, offsets):
        rewards[start : start + count] = spooled[at : at + count]
        if usable:
            response_offsets[start + 1 : start + 1 + count] = lengths[at : at + count]
    for at in range(1, len(response_offsets), BLOCK):
        block = response_offsets[at : at + BLOCK]
        block[:] = np.cumsum(block) + response_offsets[at - 1]
    for start, _, _, at, count in _placed(runs, offsets):
        if usable and count:
            to = response_offsets[start]
            response_ids[to : to + count] = tokens[at : at + count]
    ascending = column("sorted_rewards", np.float64, len(spooled))
    distinct = column("distinct", np.int32, len(offsets) - 1)
    for row, (start, end) in enumerate(pairwise(offsets)):
        ordered = np.sort(rewards[start:end])
        ascending[start:end] = ordered
        distinct[row] = 1 + np.count_nonzero(np.diff(ordered))


def _placed(
    runs: NDArray[np.int64], offsets: NDArray[np.int64]
) -> Iterator[tuple[int, int, int, int, int]]:
    """Of every run: its first sample in the columns, that in the spool and how many, tokens alike."""
    free = offsets[:-1].copy()
    at = tokens_at = 0
    for row, count, tokens in runs:
        yield int(free[row]), at, int(count), tokens_at, int(tokens)
        free[row] += count
        at += int(count)
        tokens_at += int(tokens)


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
