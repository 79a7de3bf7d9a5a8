"""The directory of collected answers: one writer, bounded in bytes and age, repaired after a kill."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vbon.distil.answer import CollectedAnswer, Identity, to_line
from vbon.distil.open_shard import OpenShard, remove_answers
from vbon.distil.shard import OPEN, PARTIAL, SEALED, SealedShard, header_line, shard_files
from vbon.distil.summary import ShardContent, shard_paths
from vbon.errors import DataError, ExportError
from vbon.storage.atomic import write_errors
from vbon.storage.locks import sole_writer

logger = logging.getLogger(__name__)

SALT = "salt"
_LOCKED = "collected"  # the lock is beside a file of this name, which does not exist
_REMEDY = (
    "stop that process, or choose another directory (a running service deletes by DELETE "
    "/distil/requests/ID)"
)
MAX_OPEN = 8  # shards that grow at once; each belongs to another identity
MAX_SHARDS = 10_000
# A line may take this part of max_bytes, and so may a shard.
LINE_SHARE = SHARD_SHARE = 8
MAX_SHARD_BYTES = 64 * 2**20
# A key may send so many answers before its share is looked at, so that the first of all can begin.
FREE_LINES = 100

Refusal = Literal["key_share", "too_large", "unwritable"]
Outcome = Refusal | OSError | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of a directory.

    Attributes:
        max_bytes: bytes of all shards together.
        retention_s: seconds after which an answer is removed; ``None``: never.
        shard_s: seconds after which a shard is sealed.
        max_key_share: part of the kept lines that may belong to one key.
    """

    max_bytes: int = 2**30
    retention_s: float | None = None
    shard_s: float = 3600.0
    max_key_share: float = 1.0

    @property
    def shard_bytes(self) -> int:
        """The size at which a shard is sealed."""
        return min(MAX_SHARD_BYTES, self.max_bytes // SHARD_SHARE)


@dataclass
class Removals:
    """Counts of what was removed since the directory was opened.

    Attributes:
        shards: whole shards by reason: ``bytes``, ``age`` or ``count``.
        lines: their lines, by the same reasons.
        deleted: lines removed by request id.
        cut_bytes: bytes of torn lines that a killed writer had left.
    """

    shards: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    deleted: int = 0
    cut_bytes: int = 0


class CollectedDirectory:
    """The only writer of a directory of shards. Answers of one identity share a shard.

    It is not thread-safe: one thread calls all methods. When :attr:`Bounds.max_bytes` is reached, the oldest
    sealed shard is removed, or the oldest open one if none is sealed.
    """

    def __init__(
        self, path: Path, bounds: Bounds | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Create or lock the directory, and repair what a killed writer has left.

        Raises:
            ExportError: the directory cannot be created or written, or another process collects into it.
        """
        self.path, self.bounds, self._clock = path, bounds or Bounds(), clock
        self.open: dict[str, OpenShard] = {}
        self.sealed: list[SealedShard] = []  # the oldest first
        self.removed = Removals()
        self.keys: Counter[str] = Counter()
        self._sealed_bytes = self._sealed_lines = 0
        self._unreadable: set[Path] = set()
        self._hashes: dict[str, str] = {}
        self._exit = ExitStack()
        if path.exists() and not path.is_dir():
            raise ExportError(
                f"{path} is a file; give the path of a directory to collect answers in"
            )
        with write_errors(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._salt = _salt(path)
        self._exit.enter_context(sole_writer(path / _LOCKED, remedy=_REMEDY))
        try:
            with write_errors(path):
                self._repair()
        except BaseException:
            self._exit.close()
            raise

    @property
    def lines(self) -> int:
        """The number of answers in all shards."""
        return self._sealed_lines + sum(one.content.lines for one in self.open.values())

    @property
    def size(self) -> int:
        """The bytes of all shards, with the seals that open ones will get."""
        return self._sealed_bytes + sum(one.content.most_bytes for one in self.open.values())

    def now_s(self) -> float:
        """Unix time in seconds, by which answers are dated and retained."""
        return self._clock()

    def key_hash(self, name: str) -> str:
        """The name of an API key as shards have it, which differs between directories; empty for none."""
        if not name:
            return ""
        if name not in self._hashes:
            digest = hmac.new(self._salt, name.encode(), hashlib.sha256)
            self._hashes[name] = digest.hexdigest()[:16]
        return self._hashes[name]

    def append(self, identity: Identity, answer: CollectedAnswer) -> Refusal | None:
        """Keep an answer, or tell why it is not kept.

        Raises:
            OSError: the disk is full, or a shard cannot be written; everything kept before is intact.
        """
        (outcome,) = self.append_all(identity, [answer])
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def append_all(self, identity: Identity, answers: Sequence[CollectedAnswer]) -> list[Outcome]:
        """Keep answers with few writes, and tell of each why it is not kept; of those that are, ``None``."""
        outcomes: list[Outcome] = [None] * len(answers)
        lines: dict[int, bytes] = {}  # by the answer's place; what the next write takes
        size, room = 0, self._room(identity)
        for place, answer in enumerate(answers):
            line = self._line(answer)
            if not isinstance(line, bytes):
                outcomes[place] = line
                continue
            self.keys[answer.key] += 1
            lines[place] = line
            size += len(line)
            if size >= room:
                self._append_lines(identity, answers, lines, outcomes)
                size, room = 0, self._room(identity)
                lines.clear()
        self._append_lines(identity, answers, lines, outcomes)
        return outcomes

    def _line(self, answer: CollectedAnswer) -> bytes | Refusal:
        """The line of an answer, or why it is not kept."""
        if not self._has_share(answer.key):
            return "key_share"
        try:
            line = to_line(answer)
        except ValueError:
            return "unwritable"
        return "too_large" if len(line) > self.bounds.max_bytes // LINE_SHARE else line

    def _room(self, identity: Identity) -> int:
        """The bytes after which the shard of an identity is sealed; one write takes a line more at most."""
        found = self.open.get(identity.digest)
        size = found.content.size if found else len(header_line(identity))
        return self.bounds.shard_bytes - size

    def _append_lines(
        self,
        identity: Identity,
        answers: Sequence[CollectedAnswer],
        lines: dict[int, bytes],
        outcomes: list[Outcome],
    ) -> None:
        """Write the lines of some answers; the outcome of those that cannot be written is the error."""
        if not lines:
            return
        written = b"".join(lines.values())
        try:
            shard = self._shard(identity, len(written))
            shard.append(written, *(answers[place] for place in lines))
        except OSError as error:
            if len(lines) > 1:  # on a disk that is nearly full, some of them may fit
                for place, line in lines.items():
                    self._append_lines(identity, answers, {place: line}, outcomes)
                return
            (place,) = lines
            self.keys[answers[place].key] -= 1
            outcomes[place] = error
            return
        if shard.content.size >= self.bounds.shard_bytes:
            with suppress(OSError):  # the shard stays open, and the next answer has it tried again
                self._seal(shard)

    def _has_share(self, key: str) -> bool:
        limit = self.bounds.max_key_share
        return limit >= 1 or self.keys[key] <= max(FREE_LINES, limit * self.keys.total())

    def _shard(self, identity: Identity, room: int) -> OpenShard:
        """The open shard of an identity, after removing old shards until there is room."""
        self._make_room(room)
        found = self.open.pop(identity.digest, None)
        if found is None:
            if len(self.open) >= MAX_OPEN:
                self._seal(next(iter(self.open.values())))
            found = OpenShard.create(self.path, identity, self._clock())
        self.open[identity.digest] = found  # the last one is the one used last
        return found

    def _make_room(self, room: int) -> None:
        spare = room + 2048  # a new shard's first line and its seal
        while self.size + spare > self.bounds.max_bytes and (self.sealed or self.open):
            if self.sealed:
                self._evict(self.sealed[0], "bytes")
            else:
                self._discard(min(self.open.values(), key=lambda one: one.created_s), "bytes")
        while len(self.sealed) >= MAX_SHARDS:
            self._evict(self.sealed[0], "count")

    def _seal(self, shard: OpenShard) -> None:
        self.open.pop(shard.identity.digest, None)
        if not shard.content.lines:
            shard.discard()
            return
        try:
            self._insert(shard.seal())
        except OSError:
            self.open[shard.identity.digest] = shard
            raise

    def _insert(self, shard: SealedShard) -> None:
        insort(self.sealed, shard, key=SealedShard.age)
        self._sealed_bytes += shard.size
        self._sealed_lines += shard.seal.lines

    def _forget(self, shard: SealedShard) -> None:
        self.sealed.remove(shard)
        self._sealed_bytes -= shard.size
        self._sealed_lines -= shard.seal.lines

    def _evict(self, shard: SealedShard, reason: str) -> None:
        shard.path.unlink(missing_ok=True)
        self._forget(shard)
        self._count_removed(reason, shard.seal.lines, shard.seal.keys)

    def _discard(self, shard: OpenShard, reason: str) -> None:
        del self.open[shard.identity.digest]
        shard.discard()
        self._count_removed(reason, shard.content.lines, shard.content.keys)

    def _count_removed(self, reason: str, lines: int, keys: Mapping[str, int]) -> None:
        self.removed.shards[reason] += 1
        self.removed.lines[reason] += lines
        self.keys -= Counter(keys)

    def tick(self) -> None:
        """Flush lines to the disk, seal old shards and remove those whose oldest answer is too old.

        Call it about once a second.

        Raises:
            OSError: the disk is full or fails; the next call tries again.
        """
        now_s, limits = self._clock(), self.bounds
        if limits.retention_s is not None:
            self._retire(now_s - limits.retention_s)
        for shard in list(self.open.values()):
            if shard.content.lines and now_s - shard.created_s >= limits.shard_s:
                self._seal(shard)
            else:
                shard.sync()

    def _retire(self, before_s: float) -> None:
        while self.sealed and self.sealed[0].seal.first_s < before_s:
            self._evict(self.sealed[0], "age")
        for shard in [one for one in self.open.values() if one.content.first_s < before_s]:
            self._discard(shard, "age")
        for path in sorted(self._unreadable):
            if not path.exists() or path.stat().st_mtime < before_s:  # a deletion may remove it
                path.unlink(missing_ok=True)
                self._unreadable.remove(path)

    def delete(self, request_ids: Iterable[str]) -> int:
        """Remove every answer to these requests from all shards.

        Returns:
            The number of lines removed.

        Raises:
            OSError: a shard cannot be rewritten, for example for lack of space; the others are done.
        """
        wanted, removed = frozenset(request_ids), 0
        failure: OSError | None = None
        for path in shard_files(self.path):
            try:
                found = remove_answers(path, wanted)
            except OSError as error:
                failure = error
                continue
            removed += found
            if found:
                self._reread(path)
        self.removed.deleted += removed
        if failure is not None:
            raise failure
        return removed

    def _reread(self, path: Path) -> None:
        """Take note of a shard that was rewritten or removed."""
        for sealed in [one for one in self.sealed if one.path == path]:
            self._forget(sealed)
        for digest, shard in list(self.open.items()):
            if shard.path == path:
                shard.close()
                del self.open[digest]
        if path.exists():
            self._load(path)
        self._count_keys()

    def _count_keys(self) -> None:
        self.keys = Counter()
        for sealed in self.sealed:
            self.keys.update(sealed.seal.keys)
        for shard in self.open.values():
            self.keys.update(shard.content.keys)

    def contents(self) -> list[ShardContent]:
        """All shards in numbers."""
        grown = [one for one in self.open.values() if one.content.lines]
        return [
            *(ShardContent.of_sealed(one) for one in self.sealed),
            *(ShardContent.of_open(one.identity, one.content) for one in grown),
        ]

    def seal_all(self) -> None:
        """Seal every open shard, so that a cache can be made of all answers.

        Raises:
            OSError: the disk is full; shards that are not sealed stay open.
        """
        for shard in list(self.open.values()):
            self._seal(shard)

    def close(self) -> None:
        """Seal what can be sealed, and let another process use the directory."""
        try:
            with suppress(OSError):  # the next start continues the open shards
                self.seal_all()
            for shard in self.open.values():
                shard.close()
        finally:
            self.open = {}
            self._exit.close()

    def _repair(self) -> None:
        for path in self.path.glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)
        for path in shard_files(self.path):
            self._load(path)
        self._count_keys()

    def _load(self, path: Path) -> None:
        """Take in a shard: a sealed one as it is, an open or damaged one after its repair."""
        if path.suffix == SEALED:
            try:
                self._insert(SealedShard.read(path))
                return
            except DataError as error:
                logger.warning("%s; what is intact of it is kept", error)
        try:
            shard, cut = OpenShard.recover(path, self._clock())
        except DataError as error:
            if path.suffix == OPEN:  # killed before its first line was written
                path.unlink()
            else:
                self._unreadable.add(path)
                logger.warning("%s; it is left out of everything but deletion and retention", error)
            return
        if cut:
            self.removed.cut_bytes += cut
            logger.warning(
                "%s ended in an incomplete line, which was cut off (%d bytes): the process that wrote it "
                "was killed; the %d answers before it are kept",
                path,
                cut,
                shard.content.lines,
            )
        if path.suffix == OPEN and shard.identity.digest not in self.open:
            self.open[shard.identity.digest] = shard
        elif shard.content.lines:
            self._insert(shard.seal())
        else:
            shard.discard()


def delete_offline(path: Path, request_ids: Iterable[str]) -> int:
    """Remove every answer to some requests from a directory that no service is using.

    Returns:
        The number of lines removed.

    Raises:
        DataError: not a directory, or one that cannot be read.
        ExportError: a service is using it, or a shard cannot be rewritten.
    """
    shard_paths(path)  # raises the error of a missing directory
    directory = CollectedDirectory(path)
    try:
        with write_errors(path):
            return directory.delete(request_ids)
    finally:
        directory.close()


def _salt(directory: Path) -> bytes:
    """The directory's secret for hashing names; made at first use."""
    path = directory / SALT
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_hex(16).encode())
        finally:
            os.close(descriptor)
    return path.read_bytes()
