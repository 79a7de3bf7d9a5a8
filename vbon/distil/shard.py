"""The format of a shard: JSON lines, the first with the identity of all samples, the last with a seal.

::

    {"vbon_distil": 1, "identity": {...}}     what made the samples
    {"prompt": ..., "responses": [...], ...}  one line per answer (answer.py)
    {"sealed": {"lines": ..., "sha256": ...}} only in a sealed shard

An open shard grows by whole lines. A killed writer leaves at most one torn line at its end, which
:func:`intact_part` finds. A sealed shard never changes, except that a deletion replaces it in one step.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from vbon.distil.answer import CollectedAnswer, Identity, parse_line
from vbon.errors import DataError
from vbon.storage.atomic import read_errors

FORMAT = 1
SEALED, OPEN, PARTIAL = ".jsonl", ".open", ".partial"
SEAL_START = b'{"sealed"'
# Bytes that a seal may take: its fixed part, and each key's count.
_SEAL_BYTES, _KEY_BYTES = 512, 48
_TAIL = 64 * 1024


class Seal(BaseModel):
    """The last line of a sealed shard.

    Attributes:
        sha256: of all bytes before the seal, in hex.
        first_s, last_s: Unix time of the oldest and the newest answer.
        keys: number of lines by the hash of the API key's name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lines: int
    candidates: int
    first_s: float
    last_s: float
    keys: dict[str, int]
    sha256: str


@dataclass
class Content:
    """Sums over the lines of a shard.

    Attributes:
        size: bytes up to the end of the last line.
        digest: the running SHA-256 of these bytes.
    """

    size: int = 0
    lines: int = 0
    candidates: int = 0
    first_s: float = float("inf")
    last_s: float = float("-inf")
    keys: Counter[str] = field(default_factory=Counter)
    digest: Any = field(default_factory=hashlib.sha256)

    def add_header(self, line: bytes) -> None:
        """Count the first line."""
        self.size += len(line)
        self.digest.update(line)

    def add(self, lines: bytes, *answers: CollectedAnswer) -> None:
        """Count the lines of some answers, one after another."""
        self.add_header(lines)
        self.lines += len(answers)
        for answer in answers:
            self.candidates += len(answer.rewards)
            self.first_s = min(self.first_s, answer.time)
            self.last_s = max(self.last_s, answer.time)
            self.keys[answer.key] += 1

    @property
    def most_bytes(self) -> int:
        """The size that the file may take with its seal."""
        return self.size + _SEAL_BYTES + _KEY_BYTES * len(self.keys)

    def seal_line(self) -> bytes:
        """The last line of the shard with this content."""
        seal = Seal(
            lines=self.lines,
            candidates=self.candidates,
            first_s=self.first_s,
            last_s=self.last_s,
            keys=dict(self.keys),
            sha256=self.digest.hexdigest(),
        )
        return to_json({"sealed": seal}) + b"\n"


def shard_files(directory: Path) -> list[Path]:
    """The files of all shards, sealed or open, in the order of their names.

    Raises:
        OSError: the directory cannot be read.
    """
    return sorted(path for path in directory.iterdir() if path.suffix in {SEALED, OPEN})


def header_line(identity: Identity) -> bytes:
    """The first line of a shard."""
    record = {"vbon_distil": FORMAT, "identity": identity.model_dump(exclude_none=True)}
    return to_json(record) + b"\n"


def parse_header(line: bytes, where: str) -> Identity:
    """The identity in the first line of a shard.

    Raises:
        DataError: not the first line of a shard, or that of a later version.
    """
    try:
        record = json.loads(line)
        version = record["vbon_distil"]
        identity = record["identity"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise DataError(f"{where} does not begin like a shard of collected answers") from None
    if version != FORMAT:
        raise DataError(
            f"{where} has the format {version!r} of another version of this program, which reads "
            f"{FORMAT}; use that version"
        )
    try:
        return Identity.model_validate(identity)
    except ValidationError as error:
        raise DataError(f"{where} has no valid identity: {error.errors()[0]['msg']}") from None


def answer_lines(source: BinaryIO) -> Iterator[bytes]:
    """The lines after the first, up to the seal or a torn line."""
    for line in source:
        if not line.endswith(b"\n") or line.startswith(SEAL_START):
            return
        yield line


def intact_part(source: BinaryIO, where: str) -> tuple[Identity, Content]:
    """Read a shard that may end in a torn line or a seal, and count its answers up to there.

    Raises:
        DataError: the first line is torn, so there is no answer.
    """
    header = source.readline()
    identity = parse_header(header if header.endswith(b"\n") else b"", where)
    content = Content()
    content.add_header(header)
    for line in answer_lines(source):
        try:
            answer = parse_line(line, where)
        except DataError:
            break
        content.add(line, answer)
    return identity, content


@dataclass(frozen=True, slots=True)
class SealedShard:
    """A sealed shard on disk.

    Attributes:
        size: bytes of the file.
        body: bytes before the seal.
    """

    path: Path
    identity: Identity
    seal: Seal
    size: int
    body: int

    @classmethod
    def read(cls, path: Path) -> SealedShard:
        """Read the first and the last line; :meth:`checked_answers` checks the rest.

        Raises:
            DataError: the file cannot be read, or has no valid seal.
        """
        with read_errors(path), path.open("rb") as source:
            return cls._in(source, path)

    @classmethod
    def _in(cls, source: BinaryIO, path: Path) -> SealedShard:
        """The shard in an opened file."""
        size = os.fstat(source.fileno()).st_size
        identity = parse_header(source.readline(), str(path))
        last = _last_line(source, size)
        try:
            seal = Seal.model_validate(json.loads(last)["sealed"])
        except (ValueError, RecursionError, TypeError, KeyError):
            raise DataError(f"{path} has no valid seal, so it is damaged") from None
        return cls(path, identity, seal, size, size - len(last))

    def age(self) -> tuple[float, str]:
        """A key that sorts shards by their oldest answer, the oldest first."""
        return self.seal.first_s, self.path.name

    def answers(self, source: BinaryIO) -> Iterator[CollectedAnswer]:
        """All answers in the opened file of the shard.

        Raises:
            DataError: the content is not what was sealed; raised at the end, after all answers.
        """
        damaged = f"{self.path}: its content is not what was sealed, so it is damaged"
        source.seek(0)
        header = source.readline()
        digest, at = hashlib.sha256(header), len(header)
        while at < self.body:
            line = source.readline(self.body - at)
            if not line:
                raise DataError(damaged)
            digest.update(line)
            at += len(line)
            try:
                answer = parse_line(line, str(self.path))
            except DataError:
                raise DataError(damaged) from None
            yield answer
        if digest.hexdigest() != self.seal.sha256:
            raise DataError(damaged)

    def checked_answers(self) -> Iterator[CollectedAnswer]:
        """All answers, after a first reading has found them to be what was sealed.

        Seal and answers are read from one open file, even if the shard is replaced or removed meanwhile.

        Raises:
            DataError: the content is not what was sealed; raised before any answer.
            FileNotFoundError: the shard has been removed.
        """
        with self.path.open("rb") as source:
            now = SealedShard._in(source, self.path)  # a deletion may have replaced it
            for _ in now.answers(source):
                pass
            yield from now.answers(source)


def _last_line(source: BinaryIO, size: int) -> bytes:
    """The last line of a file, which may be long if many keys have sent answers."""
    length = _TAIL
    while True:
        start = max(0, size - length)
        source.seek(start)
        tail = source.read(size - start)
        at = tail.rfind(b"\n", 0, len(tail) - 1)
        if at >= 0 or start == 0:
            return tail[at + 1 :]
        length *= 2
