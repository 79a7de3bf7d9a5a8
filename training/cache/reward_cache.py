"""The reward cache: M scored reference samples per prompt, from which F is estimated.

Caches are exchanged as JSONL (``jsonl.py``). They are compiled once into memory-mapped columns
(``columns.py``), so a cache may be larger than memory. A row is a prompt; prompts with the same token ids are
the same row.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from training.cache.columns import INDEX, Columns, columns_path, create_column, key_of
from training.cache.jsonl import TokenisedLine
from training.cache.open_columns import open_columns
from training.cache.write_columns import write_columns
from training.outputs.identity import read_json_record
from vbon.errors import DataError, ExportError
from vbon.prompts import Prompt
from vbon.storage.atomic import REMEDY, write_json
from vbon.storage.checksums import find_damage, sha256_of

logger = logging.getLogger(__name__)

Float = NDArray[np.float64]

# log F^ is at least log(1/(M+1)). If M is less than this many times N, the bound distorts the objective.
SAMPLES_PER_CANDIDATE = 4
# Prompts that the share of ties is estimated from.
TIES_LOOKED_AT = 1000


class RewardCache:
    """Rewards and responses of the reference samples by row; create it with :meth:`open`."""

    def __init__(
        self,
        columns: Columns,
        directory: Path | None = None,
        index: Mapping[str, Any] | None = None,
    ) -> None:
        self._columns, self._directory, self._index = columns, directory, dict(index or {})
        self._ref_logprob: Float | None = None

    @classmethod
    def open(
        cls, path: Path, tokenizer: Any, *, max_new_tokens: int, vocab_size: int | None = None
    ) -> RewardCache:
        """Map the columns of a JSONL cache; compile them first if the file or the tokenizer has changed.

        Args:
            vocab_size: the size of the policy's vocabulary, which may exceed the tokenizer's; compiling
                fails on a token id beyond it.

        Raises:
            DataError: the file is missing or empty, or a line is malformed; the message names the line.
            ExportError: the columns cannot be written beside the file.
        """
        columns, index = open_columns(path, tokenizer, max_new_tokens, vocab_size)
        return cls(columns, columns_path(path), index)

    @classmethod
    def from_rewards(
        cls,
        rewards: Mapping[tuple[int, ...], Sequence[float]],
        responses: Mapping[tuple[int, ...], Sequence[Sequence[int]]] | None = None,
    ) -> RewardCache:
        """A cache in memory, from rewards and responses by prompt token ids.

        The texts of the prompts are their token ids, separated by spaces.
        """
        lines = (
            TokenisedLine(
                Prompt(text=" ".join(map(str, ids))),
                ids,
                np.asarray(values, dtype=np.float64),
                responses[ids] if responses is not None else None,
            )
            for ids, values in rewards.items()
        )
        with tempfile.TemporaryDirectory() as directory:
            write_columns(Path(directory), lines)
            return cls(Columns.load(Path(directory), mmap_mode=None))

    def __len__(self) -> int:
        return len(self._columns.keys)

    @property
    def smallest(self) -> int:
        """The smallest number of samples of any prompt."""
        return int(np.diff(self._columns.offsets).min())

    @property
    def total_samples(self) -> int:
        """Number of samples of all prompts together."""
        return int(self._columns.offsets[-1])

    @property
    def has_responses(self) -> bool:
        """True if every sample has its response."""
        return bool(self._columns.has_responses.all())

    @property
    def sha256(self) -> str:
        """SHA-256 of the JSONL file in hex; empty for a cache in memory."""
        return str(self._index.get("sha256", ""))

    def prompt(self, row: int) -> Prompt:
        """The prompt of a row, as text or messages."""
        start, end = self._columns.text_offsets[row : row + 2]
        record = json.loads(self._columns.prompts[start:end].tobytes())
        if "messages" in record:
            return Prompt(messages=tuple(record["messages"]))
        return Prompt(text=record["prompt"])

    def prompt_ids(self, row: int) -> list[int]:
        """The prompt of a row, as token ids."""
        start, end = self._columns.prompt_offsets[row : row + 2]
        return self._columns.prompt_ids[start:end].tolist()

    def row_of(self, ids: Sequence[int]) -> int:
        """The row of a prompt, given by its token ids.

        Raises:
            DataError: the prompt is not in the cache.
        """
        key = np.array(key_of(ids), dtype="S16")
        at = int(np.searchsorted(self._columns.keys, key))
        if at == len(self) or self._columns.keys[at] != key:
            more = ", ..." if len(ids) > 8 else ""
            raise DataError(
                f"the prompt with token ids [{', '.join(map(str, ids[:8]))}{more}] is not in the "
                f"reward cache ({len(self)} prompts); sample it with `vbon sample`"
            )
        return int(self._columns.key_rows[at])

    def rewards(self, row: int) -> Float:
        """Rewards of a prompt's samples in the order of the file, shape ``(M,)``; a copy."""
        return self._columns.rewards[self._samples(row)].copy()

    def sorted_rewards(self, row: int) -> Float:
        """Rewards of a prompt's samples in ascending order, shape ``(M,)``; a copy."""
        return self._columns.sorted_rewards[self._samples(row)].copy()

    def responses(self, row: int) -> list[list[int]]:
        """Token ids of all samples of a prompt, aligned with :meth:`rewards`.

        A complete response ends with EOS. A response is empty only if its text was empty and truncated.

        Raises:
            DataError: the file has rewards but no responses.
        """
        samples = self._samples(row)
        bounds = self._response_offsets(row, samples.start, samples.stop)
        flat = self._columns.response_ids[bounds[0] : bounds[-1]].tolist()
        first = bounds[0]
        return [flat[a - first : b - first] for a, b in pairwise(bounds)]

    def response(self, row: int, index: int) -> list[int]:
        """Token ids of one sample of a prompt; see :meth:`responses`.

        Raises:
            IndexError: the prompt has no such sample.
            DataError: the file has rewards but no responses.
        """
        samples = self._samples(row)
        at = range(samples.start, samples.stop)[index]
        start, end = self._response_offsets(row, at, at + 1)
        return self._columns.response_ids[start:end].tolist()

    def _samples(self, row: int) -> slice:
        start, end = self._columns.offsets[row : row + 2].tolist()
        return slice(start, end)

    def _response_offsets(self, row: int, start: int, end: int) -> list[int]:
        if not self._columns.has_responses[row]:
            raise DataError(
                f"prompt {self.prompt(row).key[:80]!r} of the reward cache has rewards but no "
                "responses, which this objective trains on; sample again, or use an objective such as "
                "vbon with --warm-start-steps 0 --cached-weight 0"
            )
        return self._columns.response_offsets[start : end + 1].tolist()

    def log_cdf(self, row: int, rewards: Float, *, inclusive: bool = False) -> Float:
        """``log F^ = log((rank + 1) / (M + 1))`` of rewards for this prompt; same shape.

        ``rank`` is the number of cached rewards that are strictly smaller, or with ``inclusive`` smaller or
        equal. F^ is at least ``1/(M+1)``, so the result is finite. Its mean under the reference tends to -1
        as M grows (-0.95 for M = 64, -0.987 for M = 300), so M should be well above N.
        """
        reference = self._columns.sorted_rewards[self._samples(row)]
        rank = np.searchsorted(reference, rewards, side="right" if inclusive else "left")
        return np.log((rank + 1) / (len(reference) + 1))

    def log_quantile(self, row: int, rewards: Float) -> Float:
        """``log((k - 1/2) / M)`` of cached rewards of this prompt, where k is their rank 1..M; same shape.

        A cached sample is one of the M itself, so the smoothing of :meth:`log_cdf` does not suit it. These
        quantiles have the mean 1/2 of a uniform variable. Tied rewards share the mean of their ranks.
        """
        reference = self._columns.sorted_rewards[self._samples(row)]
        below = np.searchsorted(reference, rewards, side="left")
        up_to = np.searchsorted(reference, rewards, side="right")
        return np.log((below + up_to) / (2 * len(reference)))

    def tied_share(self) -> float:
        """Probability that two samples of a prompt have the same reward, averaged over prompts.

        It is estimated from all pairs of cached samples of the first 1,000 prompts.
        """
        shares = []
        for row in range(min(len(self), TIES_LOOKED_AT)):
            counts = np.unique(self._columns.rewards[self._samples(row)], return_counts=True)[1]
            total = counts.sum()
            if total > 1:
                shares.append((counts * (counts - 1)).sum() / (total * (total - 1)))
        return float(np.mean(shares)) if shares else 0.0

    def check_informative(self) -> None:
        """Check that the rewards of at least one prompt differ.

        Raises:
            DataError: the rewards of every prompt are all equal.
        """
        if self._columns.distinct.max() < 2:
            raise DataError(
                "every prompt's rewards are all equal, so there is nothing to learn from; check the "
                "reward model, and that more than one sample is drawn for each prompt"
            )

    def warn_about(self, num_samples: int | None) -> list[str]:
        """Log and return reasons why training on this cache may work badly.

        Args:
            num_samples: N, or ``None`` for an objective without N, which works with any M.
        """
        warnings = []
        flat = np.flatnonzero(self._columns.distinct < 2)
        if len(flat):
            warnings.append(
                f"{len(flat)} of {len(self)} prompts have all-equal rewards (first: "
                f"{self.prompt(int(flat[0])).key[:60]!r}), from which nothing can be learned"
            )
        if num_samples is not None and self.smallest < SAMPLES_PER_CANDIDATE * num_samples:
            warnings.append(
                f"M = {self.smallest} reference samples per prompt are few for N = {num_samples}, because "
                f"values of F below 1/{self.smallest + 1} cannot be distinguished; use at least "
                f"{SAMPLES_PER_CANDIDATE * num_samples}"
            )
        for warning in warnings:
            logger.warning(warning)
        return warnings

    def ref_logprob(self, row: int) -> Float | None:
        """Log-probabilities of a prompt's samples under the reference in nats, shape ``(M,)``; a copy.

        ``None`` before :meth:`store_ref_logprob` or :meth:`load_ref_logprob` has been called.
        """
        return None if self._ref_logprob is None else self._ref_logprob[self._samples(row)].copy()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the columns against other runs, so that only one run computes what several need."""
        if self._directory is None:
            yield
            return
        with (self._directory / INDEX).open("rb") as handle:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def load_ref_logprob(self, key: str) -> bool:
        """Map the log-probabilities stored under ``key``; False if they are missing or damaged."""
        if self._directory is None or not self._is_current():
            return False
        path = _ref_logprob_path(self._directory, key)
        recorded = read_json_record(_sums_path(path)) or {}
        try:
            wrong = (
                find_damage(self._directory, recorded) if path.name in recorded else "no checksum"
            )
            values = np.load(path, mmap_mode="r")
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if wrong is not None or values.shape != self._columns.rewards.shape:
            logger.warning("%s is damaged; computing it again", path)
            return False
        self._ref_logprob = np.asarray(values)
        return True

    def store_ref_logprob(self, values: Iterable[Float], key: str) -> None:
        """Write log-probabilities beside the columns atomically, and use them.

        Args:
            values: one array of shape ``(M,)`` per row, in the order of the rows.
            key: names everything that they depend on besides the cache, such as the policy's revision.

        Raises:
            ValueError: the values do not fit the rows.
            ExportError: they cannot be written, or the columns have been compiled again since.
        """
        if self._directory is None:
            self._ref_logprob = np.concatenate(list(self._aligned(values)))
            return
        if not self._is_current():
            raise ExportError(
                f"the reward cache of {self._directory} was compiled again because it changed; run again"
            )
        path = _ref_logprob_path(self._directory, key)
        partial = path.with_name(path.name + ".partial")
        try:
            column = create_column(partial, np.float64, len(self._columns.rewards))
            for row, row_values in enumerate(self._aligned(values)):
                column[self._samples(row)] = row_values
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            size = {"bytes": partial.stat().st_size, "sha256": sha256_of(partial)}
            write_json(_sums_path(path), {path.name: size})
            partial.replace(path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise ExportError(
                    f"could not write {path}: {error.strerror or error}; {REMEDY}"
                ) from error
            raise
        if not self.load_ref_logprob(key):
            raise ExportError(f"{path} could not be read back")

    def _aligned(self, values: Iterable[Float]) -> Iterable[Float]:
        sizes = np.diff(self._columns.offsets)
        for size, row_values in zip(sizes, values, strict=True):
            if row_values.shape != (size,):
                raise ValueError(
                    f"log-probabilities of shape {row_values.shape} for {size} samples"
                )
            yield np.asarray(row_values, dtype=np.float64)

    def _is_current(self) -> bool:
        """True if the directory still holds the columns that are mapped here."""
        assert self._directory is not None
        index = read_json_record(self._directory / INDEX) or {}
        return all(
            index.get(name) == self._index.get(name)
            for name in ("sha256", "tokenizer", "max_new_tokens", "vocab_size", "version")
        )


def _ref_logprob_path(directory: Path, key: str) -> Path:
    return directory / f"ref_logprob-{quote(key, safe='')}.npy"


def _sums_path(path: Path) -> Path:
    return path.with_name(path.name + ".checksum.json")
