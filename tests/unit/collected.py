"""Collected answers for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vbon.distil.answer import CollectedAnswer, Identity
from vbon.distil.shard import SealedShard


def identity(**changes: Any) -> Identity:
    values: dict[str, Any] = {
        "policy": "ref-dir",
        "policy_revision": "sha256:aa",
        "reward": "reward-dir",
        "reward_revision": "sha256:bb",
        "max_new_tokens": 8,
        "temperature": 1.0,
    }
    return Identity(**{**values, **changes})


def answer(request_id: str = "req-1", **changes: Any) -> CollectedAnswer:
    values: dict[str, Any] = {
        "prompt": "the film was",
        "responses": (" good", " bad"),
        "response_ids": ((1, 9), (2, 9)),
        "rewards": (1.25, -0.1),
        "finish_reasons": ("stop", "length"),
        "indices": (0, 1),
        "independent": 2,
        "request_id": request_id,
        "key": "",
        "mode": "bon",
        "time": 1000.0,
    }
    return CollectedAnswer(**{**values, **changes})


def kept(directory: Path) -> list[CollectedAnswer]:
    """All answers in the sealed shards of a directory, whose checksums must be right."""
    shards = [SealedShard.read(path) for path in sorted(directory.glob("*.jsonl"))]
    return [found for shard in shards for found in shard.checked_answers()]


def everything(directory: Path) -> bytes:
    """The bytes of all files in a directory."""
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
