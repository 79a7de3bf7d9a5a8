"""Prompts that a service has collected so far, read again and again while it goes on collecting."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vbon.distil.answer import CollectedAnswer, Identity, parse_line
from vbon.distil.shard import SEALED, SealedShard, answer_lines, parse_header
from vbon.distil.split import is_held_out, opening
from vbon.distil.summary import shard_paths
from vbon.errors import DataError
from vbon.storage.atomic import read_errors

MOST_TEXT = 400  # characters of a prompt that are remembered for tests of a drift


@dataclass(frozen=True, slots=True)
class SeenPrompt:
    """A prompt as it was first seen. All turns of a conversation are one prompt, by their opening.

    Attributes:
        time_s: Unix time of its first answer.
        reward: mean reward of the independent candidates of this answer; ``None`` without any.
        samples: number of independent candidates of this answer.
        held_out: whether it never trains.
    """

    text: str
    time_s: float
    reward: float | None
    samples: int
    held_out: bool


@dataclass
class Collected:
    """The prompts of one identity.

    Attributes:
        answers: number of collected answers, repeated prompts included.
        newest_s: Unix time of the newest answer.
    """

    identity: Identity
    prompts: dict[bytes, SeenPrompt] = field(default_factory=dict)
    answers: int = 0
    newest_s: float = 0.0

    def since(self, time_s: float | None, *, held_out: bool = False) -> list[SeenPrompt]:
        """Prompts of one side of the split that were first seen after a time, oldest first."""
        found = [
            one
            for one in self.prompts.values()
            if one.held_out == held_out and one.samples and (time_s is None or one.time_s > time_s)
        ]
        return sorted(found, key=lambda one: one.time_s)

    def until(self, time_s: float) -> list[SeenPrompt]:
        """Training prompts that were first seen up to a time, oldest first."""
        return [one for one in self.since(None) if one.time_s <= time_s]

    @property
    def num_samples(self) -> int:
        """The number of independent candidates of most prompts."""
        counts = Counter(one.samples for one in self.prompts.values() if one.samples > 1)
        return counts.most_common(1)[0][0] if counts else 0


@dataclass(frozen=True, slots=True)
class _Row:
    """An answer in a shard, by the digest of its prompt's opening."""

    digest: bytes
    seen: SeenPrompt


@dataclass(frozen=True, slots=True)
class _Shard:
    """Content of a file when it had this size and time of change."""

    stamp: tuple[int, int]
    identity: Identity | None
    rows: list[_Row]


class Stream:
    """All prompts of a directory. A file is read again only if it has changed.

    With ``sealed_only``, answers count once they can be used; a loop that can seal them needs not wait.
    """

    def __init__(self, directory: Path, heldout_share: float, *, sealed_only: bool = False) -> None:
        self.directory, self._share, self._sealed_only = directory, heldout_share, sealed_only
        self._shards: dict[Path, _Shard] = {}

    def read(self) -> dict[str, Collected]:
        """The prompts by the digest of their identity; damaged files are left out.

        Raises:
            DataError: the directory cannot be read.
        """
        before, self._shards = self._shards, {}
        for path in shard_paths(self.directory):
            if self._sealed_only and path.suffix != SEALED:
                continue
            try:
                status = path.stat()
                stamp = (status.st_size, status.st_mtime_ns)
                kept = before.get(path)
                self._shards[path] = (
                    kept if kept and kept.stamp == stamp else self._read(path, stamp)
                )
            except FileNotFoundError:
                continue  # sealed or removed meanwhile
        return self._collected()

    def newest(self) -> Collected | None:
        """The prompts of the identity with the newest answer; ``None`` if there is no answer."""
        found = self.read().values()
        return max(found, key=lambda one: one.newest_s, default=None)

    def _collected(self) -> dict[str, Collected]:
        found: dict[str, Collected] = {}
        for shard in self._shards.values():
            if shard.identity is None:
                continue
            one = found.setdefault(shard.identity.digest, Collected(shard.identity))
            one.answers += len(shard.rows)
            for row in shard.rows:
                one.newest_s = max(one.newest_s, row.seen.time_s)
                earlier = one.prompts.get(row.digest)
                if earlier is None or row.seen.time_s < earlier.time_s:
                    one.prompts[row.digest] = row.seen
        return found

    def _read(self, path: Path, stamp: tuple[int, int]) -> _Shard:
        rows: list[_Row] = []
        try:
            with read_errors(path), path.open("rb") as source:
                identity = parse_header(source.readline(), str(path))
            rows.extend(self._row(answer) for answer in _answers(path))
        except DataError:
            # Damaged, or its header is still being written; `vbon distil cache` names what is damaged.
            return _Shard(stamp, None, [])
        return _Shard(stamp, identity, rows)

    def _row(self, answer: CollectedAnswer) -> _Row:
        text = opening(answer)
        rewards = [
            reward
            for reward, index in zip(answer.rewards, answer.indices, strict=True)
            if index < answer.independent
        ]
        seen = SeenPrompt(
            text=text[:MOST_TEXT],
            time_s=answer.time,
            reward=sum(rewards) / len(rewards) if rewards else None,
            samples=len(rewards),
            held_out=is_held_out(answer, self._share),
        )
        return _Row(hashlib.blake2b(text.encode(), digest_size=12).digest(), seen)


def _answers(path: Path) -> Iterator[CollectedAnswer]:
    """The answers of a sealed shard, or of one that grows up to its last whole line."""
    with read_errors(path), path.open("rb") as source:
        if path.suffix == SEALED:
            yield from SealedShard.read(path).answers(source)
            return
        source.readline()
        for line in answer_lines(source):
            yield parse_line(line, str(path))
