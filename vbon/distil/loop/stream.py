"""Prompts that a service has collected so far, read again and again while it goes on collecting."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
    """A prompt with its answers. All turns of a conversation are one prompt, by their opening.

    Attributes:
        time_s: Unix time of its first answer.
        reward: mean reward of the independent candidates of the first answer that has any.
        samples: number of independent candidates of all its answers.
        held_out: whether it never trains.
    """

    text: str
    time_s: float
    reward: float | None
    samples: int
    held_out: bool

    def with_more(self, other: SeenPrompt) -> SeenPrompt:
        """The same prompt with the answers of both."""
        first, second = (self, other) if self.time_s <= other.time_s else (other, self)
        reward = second.reward if first.reward is None else first.reward
        return replace(first, reward=reward, samples=first.samples + second.samples)


@dataclass
class Collected:
    """The prompts of one identity.

    Attributes:
        prompts: by the digest of their opening.
        asked: time and prompt of each answer, repeated prompts included.
        newest_s: Unix time of the newest answer.
        counts: number of answers by their number of independent candidates.
    """

    identity: Identity
    prompts: dict[bytes, SeenPrompt] = field(default_factory=dict)
    asked: list[tuple[float, bytes]] = field(default_factory=list)
    newest_s: float = 0.0
    counts: Counter[int] = field(default_factory=Counter)

    def add(self, digest: bytes, seen: SeenPrompt) -> None:
        """Add answers to a prompt."""
        known = self.prompts.get(digest)
        self.prompts[digest] = seen if known is None else known.with_more(seen)

    def merge(self, other: Collected) -> None:
        """Add the answers of another shard."""
        for digest, seen in other.prompts.items():
            self.add(digest, seen)
        self.asked += other.asked
        self.newest_s = max(self.newest_s, other.newest_s)
        self.counts.update(other.counts)

    def to_train_on(self, num_samples: int, since_s: float | None = None) -> list[SeenPrompt]:
        """Training prompts with enough samples that were first seen after a time, oldest first."""
        found = [
            one
            for one in self.prompts.values()
            if not one.held_out
            and one.samples >= max(1, num_samples)
            and (since_s is None or one.time_s > since_s)
        ]
        return sorted(found, key=lambda one: one.time_s)

    def asked_around(self, time_s: float, most: int) -> tuple[list[SeenPrompt], list[SeenPrompt]]:
        """The distinct prompts of equally many answers up to a time and after it.

        Those up to it are spread evenly, those after it are the newest. As they are equally many, prompts
        that are asked rarely are not more frequent on one side because it is longer.
        """
        times = sorted(self.asked)
        before = [digest for at_s, digest in times if at_s <= time_s]
        after = [digest for at_s, digest in times if at_s > time_s]
        count = min(len(before), len(after), most)

        spread = [before[i * len(before) // count] for i in range(count)]
        newest = after[len(after) - count :]
        first, second = (
            [self.prompts[digest] for digest in dict.fromkeys(side)] for side in (spread, newest)
        )
        return first, second

    @property
    def largest_share(self) -> float:
        """The share of the answers to the prompt that was asked most often."""
        counts = Counter(digest for _, digest in self.asked)
        return max(counts.values(), default=0) / max(1, len(self.asked))

    @property
    def num_samples(self) -> int:
        """The number of independent candidates of most answers; 0 if none has two."""
        several = Counter({count: n for count, n in self.counts.items() if count > 1})
        return several.most_common(1)[0][0] if several else 0


@dataclass(frozen=True, slots=True)
class _Shard:
    """Content of a file when it had this size and time of change; ``None`` if it cannot be read."""

    stamp: tuple[int, int]
    content: Collected | None


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
                known = kept is not None and kept.stamp == stamp
                self._shards[path] = kept if known and kept else self._read(path, stamp)
            except FileNotFoundError:
                continue  # sealed or removed meanwhile
        found: dict[str, Collected] = {}
        for shard in self._shards.values():
            if shard.content is not None:
                identity = shard.content.identity
                found.setdefault(identity.digest, Collected(identity)).merge(shard.content)
        return found

    def newest(self) -> Collected | None:
        """The prompts of the identity with the newest answer; ``None`` if there is no answer."""
        found = self.read().values()
        return max(found, key=lambda one: one.newest_s, default=None)

    def _read(self, path: Path, stamp: tuple[int, int]) -> _Shard:
        try:
            with read_errors(path), path.open("rb") as source:
                content = Collected(parse_header(source.readline(), str(path)))
            for answer in _answers(path):
                self._add(content, answer)
        except DataError:
            # Damaged, or its header is still being written; `vbon distil cache` names what is damaged.
            return _Shard(stamp, None)
        return _Shard(stamp, content)

    def _add(self, content: Collected, answer: CollectedAnswer) -> None:
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
        digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
        content.add(digest, seen)
        content.asked.append((answer.time, digest))
        content.newest_s = max(content.newest_s, answer.time)
        content.counts[len(rewards)] += 1


def _answers(path: Path) -> Iterator[CollectedAnswer]:
    """The answers of a sealed shard, or of one that grows up to its last whole line."""
    with read_errors(path), path.open("rb") as source:
        if path.suffix == SEALED:
            yield from SealedShard.read(path).answers(source)
            return
        source.readline()
        for line in answer_lines(source):
            yield parse_line(line, str(path))
