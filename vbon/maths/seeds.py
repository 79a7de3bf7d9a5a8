"""Derives independent seeds by hashing, so that similar inputs give unrelated seeds."""

from __future__ import annotations

import hashlib


def seed_of(text: str) -> int:
    """A 63-bit seed that depends only on the text; every sampler here accepts 63 bits."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
