"""Independent seeds from one: by hash, so that neighbouring inputs share nothing."""

from __future__ import annotations

import hashlib


def seed_of(text: str) -> int:
    """A 63-bit seed that any sampler takes, fixed by the text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
