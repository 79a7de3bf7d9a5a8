"""Writes the columns of a reward cache from its tokenised lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.cache.columns import PROMPTS, create_column, key_of
from training.cache.jsonl import TokenisedLine
from vbon.errors import DataError

# Offsets summed at once; bounds the memory that the sum needs.
BLOCK = 1 << 20


def write_columns(directory: Path, lines: Iterable[TokenisedLine]) -> None:
    """Write all columns into a directory.

    Memory grows only with the number of prompts, by their keys and lengths.

    Raises:
        DataError: ``lines`` is empty.
        OSError: the disk is full.
    """
    with ExitStack() as stack:
        spool = _Spool(directory, stack)
        for line in lines:
            spool.add(line)
        if not spool.rows:
            raise DataError("the reward cache is empty; run `vbon sample` first")
        spool.finish()
        _write_prompts(directory, spool)
        _write_samples(directory, spool)
    spool.remove()


class _Spool:
    """Temporary files of the samples in the order of the lines.

    A run is a sequence of consecutive samples of one row: ``(row, samples, response tokens)``. The runs say
    where each sample belongs once the size of every row is known.
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

    def add(self, line: TokenisedLine) -> None:
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

    def _add_prompt(self, line: TokenisedLine) -> None:
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
        """Write out everything, so that it can be read."""
        self._end_run()
        for file in (*self._files.values(), self._prompts):
            file.flush()

    def read(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        """The content of a temporary file, mapped."""
        path = self._directory / f"{name}.spool"
        if not path.stat().st_size:
            return np.empty(0, dtype)
        return np.asarray(np.memmap(path, dtype, mode="r"))

    def remove(self) -> None:
        for name in self._files:
            (self._directory / f"{name}.spool").unlink()


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
    """Bring the samples of each row together, then sort its rewards."""

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
    """The place of every run in the columns and in the spool.

    Yields:
        (first sample in the columns, first sample in the spool, number of samples, first token in the spool,
        number of tokens)
    """
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
