"""A shard that grows: created, continued after a kill, sealed, and rewritten without some of its answers."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vbon.distil.answer import CollectedAnswer, Identity, parse_line
from vbon.distil.shard import (
    OPEN,
    PARTIAL,
    SEAL_START,
    SEALED,
    Content,
    SealedShard,
    answer_lines,
    header_line,
    intact_part,
)
from vbon.errors import DataError
from vbon.storage.atomic import sync_to_disk


class OpenShard:
    """A shard that answers are appended to; only one process has it open.

    Attributes:
        created_s: Unix time at which it was opened.
    """

    def __init__(self, path: Path, identity: Identity, content: Content, created_s: float) -> None:
        self.path, self.identity, self.content = path, identity, content
        self.created_s = created_s
        self._file = os.open(path, os.O_RDWR | os.O_APPEND)
        self._torn = self._dirty = False

    @classmethod
    def create(cls, directory: Path, identity: Identity, now_s: float) -> OpenShard:
        """Make an empty shard.

        Raises:
            OSError: the disk is full, or the directory cannot be written.
        """
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_s)) + f"{now_s % 1:.6f}"[2:]
        path = directory / f"{stamp}-{identity.digest}-{secrets.token_hex(4)}{OPEN}"
        content, header = Content(), header_line(identity)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write(descriptor, header)
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(descriptor)
        content.add_header(header)
        sync_to_disk(directory)
        return cls(path, identity, content, now_s)

    @classmethod
    def recover(cls, path: Path, now_s: float) -> tuple[OpenShard, int]:
        """Open a shard that a killed process left, and cut off its torn end.

        Returns:
            The shard, and the number of bytes that were cut off; a seal is cut off too, but not counted.

        Raises:
            DataError: its first line is torn, so it has no answers.
            OSError: it cannot be read or truncated.
        """
        with path.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            identity, content = intact_part(source, str(path))
            source.seek(content.size)
            rest = source.read()
        if content.size < size:
            os.truncate(path, content.size)
        created_s = content.first_s if content.lines else now_s
        sealed = rest.startswith(SEAL_START) and rest.endswith(b"}\n")
        return cls(path, identity, content, created_s), 0 if sealed else len(rest)

    def append(self, lines: bytes, *answers: CollectedAnswer) -> None:
        """Append the lines of some answers in one write; a failure leaves the shard without any of them.

        Raises:
            OSError: the disk is full, or the file cannot be written.
        """
        self._extend(lines)
        self.content.add(lines, *answers)
        self._dirty = True

    def _extend(self, lines: bytes, *, flush: bool = False) -> None:
        """Write lines at the end of the file, and flush them to the disk if asked to; all or nothing."""
        self._mend()
        try:
            _write(self._file, lines)
            if flush:
                os.fsync(self._file)
        except OSError:
            self._torn = True
            with suppress(OSError):  # tried again before the next line
                self._mend()
            raise

    def _mend(self) -> None:
        """Cut off what a failed write has left."""
        if self._torn:
            os.ftruncate(self._file, self.content.size)
            self._torn = False

    def sync(self) -> None:
        """Flush all lines to the disk."""
        if self._dirty:
            os.fsync(self._file)
            self._dirty = False

    def seal(self) -> SealedShard:
        """Finish the shard: write its seal, flush it, and give it its final name.

        Raises:
            OSError: the disk is full; the shard stays open.
        """
        self._extend(self.content.seal_line(), flush=True)
        sealed = self.path.with_suffix(SEALED)
        self.path.replace(sealed)
        sync_to_disk(self.path.parent)
        self.close()
        return SealedShard.read(sealed)

    def discard(self) -> None:
        """Remove the shard with its answers."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file; the answers stay."""
        os.close(self._file)


def remove_answers(path: Path, request_ids: frozenset[str]) -> int:
    """Replace a shard by one without the answers to some requests, in one step.

    A shard of which nothing is left is removed. Lines that cannot be read go too, since nobody can tell whose
    they are.

    Returns:
        The number of lines with one of the ids; with 0, the file is as it was.

    Raises:
        OSError: the disk is full, or the file cannot be read or written; the file is as it was.
    """
    if not _mentions(path, finder := _finder(request_ids)):
        return 0
    partial = path.with_name(path.name + PARTIAL)
    content, removed = Content(), 0
    try:
        with path.open("rb") as source, partial.open("xb") as target:
            os.fchmod(target.fileno(), 0o600)
            header = source.readline()
            target.write(header)
            content.add_header(header)
            for line in answer_lines(source):
                answer = _kept(line, str(path), request_ids)
                if answer is not None:
                    target.write(line)
                    content.add(line, answer)
                elif finder(line):
                    removed += 1
            if path.suffix == SEALED and content.lines:
                target.write(content.seal_line())
            target.flush()
            os.fsync(target.fileno())
        if content.lines:
            partial.replace(path)
        else:
            path.unlink()
            partial.unlink()
        sync_to_disk(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return removed


Finder = Callable[[bytes], object]


def _finder(request_ids: frozenset[str]) -> Finder:
    """A quick search that finds every line with one of the ids, and perhaps others."""
    names = b"|".join(re.escape(one.encode()) for one in sorted(request_ids))
    return re.compile(rb'"request_id":\s*"(?:%s)"' % names).search


def _mentions(path: Path, finder: Finder) -> bool:
    with path.open("rb") as source:
        return any(finder(line) for line in source)


def _kept(line: bytes, where: str, request_ids: frozenset[str]) -> CollectedAnswer | None:
    """The answer of a line that stays; ``None`` for one that goes."""
    try:
        answer = parse_line(line, where)
    except DataError:
        return None
    return None if answer.request_id in request_ids else answer


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
