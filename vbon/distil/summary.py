"""Counts of a directory of collected answers, by identity, from its shards' first and last lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vbon.distil.answer import Identity
from vbon.distil.shard import SEALED, Content, Seal, SealedShard, intact_part, shard_files
from vbon.errors import DataError
from vbon.storage.atomic import read_errors


@dataclass(frozen=True, slots=True)
class ShardContent:
    """One shard, sealed or open, in numbers."""

    identity: Identity
    is_sealed: bool
    lines: int
    candidates: int
    size: int
    first_s: float
    last_s: float
    keys: Mapping[str, int]

    @classmethod
    def of_sealed(cls, shard: SealedShard) -> ShardContent:
        """A sealed shard, by its seal."""
        return cls._of(shard.identity, shard.seal, shard.size, is_sealed=True)

    @classmethod
    def of_open(cls, identity: Identity, content: Content) -> ShardContent:
        """A shard that grows, by the sums over its lines so far."""
        return cls._of(identity, content, content.size, is_sealed=False)

    @classmethod
    def _of(
        cls, identity: Identity, counts: Seal | Content, size: int, *, is_sealed: bool
    ) -> ShardContent:
        return cls(
            identity,
            is_sealed,
            counts.lines,
            counts.candidates,
            size,
            counts.first_s,
            counts.last_s,
            counts.keys,
        )


@dataclass
class IdentitySummary:
    """All answers of one identity.

    Attributes:
        first_s, last_s: Unix time of the oldest and the newest answer.
        sealed_lines: answers in sealed shards, of which a cache can be made.
    """

    identity: Identity
    lines: int = 0
    sealed_lines: int = 0
    candidates: int = 0
    first_s: float = float("inf")
    last_s: float = float("-inf")


@dataclass
class DirectorySummary:
    """All answers of a directory.

    Attributes:
        identities: the one with the newest answer first.
        keys: number of answers by the hash of the API key's name.
    """

    identities: list[IdentitySummary] = field(default_factory=list)
    lines: int = 0
    size: int = 0
    open: int = 0
    sealed: int = 0
    keys: Counter[str] = field(default_factory=Counter)

    @property
    def largest_key(self) -> tuple[str, float] | None:
        """The key with the most answers, and its share of them; ``None`` without answers of any key."""
        named = [(count, key) for key, count in self.keys.items() if key]
        if not named:
            return None
        count, key = max(named)
        return key, count / self.lines


def summarise(shards: Iterable[ShardContent]) -> DirectorySummary:
    """Add up shards."""
    found: dict[str, IdentitySummary] = {}
    total = DirectorySummary()
    for shard in shards:
        one = found.setdefault(shard.identity.digest, IdentitySummary(shard.identity))
        one.lines += shard.lines
        one.sealed_lines += shard.lines if shard.is_sealed else 0
        one.candidates += shard.candidates
        one.first_s, one.last_s = min(one.first_s, shard.first_s), max(one.last_s, shard.last_s)
        total.lines += shard.lines
        total.size += shard.size
        total.sealed += shard.is_sealed
        total.open += not shard.is_sealed
        total.keys.update(shard.keys)
    total.identities = sorted(found.values(), key=lambda one: -one.last_s)
    return total


def read_contents(directory: Path) -> tuple[list[ShardContent], list[str]]:
    """The shards of a directory that another process may be writing to; nothing is changed.

    Returns:
        The shards, and what is wrong with those that cannot be read.

    Raises:
        DataError: the directory cannot be read.
    """
    found, troubles = [], []
    for path in shard_paths(directory):
        try:
            if path.suffix == SEALED:
                found.append(ShardContent.of_sealed(SealedShard.read(path)))
            else:
                found.append(_open_content(path))
        except FileNotFoundError:
            continue  # sealed or removed meanwhile
        except DataError as error:
            if path.exists():
                troubles.append(str(error))
    return found, troubles


def shard_paths(directory: Path) -> list[Path]:
    """The files of all shards of a directory that a user has named.

    Raises:
        DataError: the directory cannot be read.
    """
    if not directory.is_dir():
        raise DataError(
            f"{directory} is not a directory of collected answers (vbon serve --distil.dir)"
        )
    with read_errors(directory):
        return shard_files(directory)


def _open_content(path: Path) -> ShardContent:
    with read_errors(path), path.open("rb") as source:
        identity, content = intact_part(source, str(path))
    return ShardContent.of_open(identity, content)
