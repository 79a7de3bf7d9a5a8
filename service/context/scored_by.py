"""The revision of each reward model that scores the current request.

Replicas of one reward model may have different ones for a while, and a reload replaces one below the requests
of other processes. Rewards of two reward models cannot be compared, so that a request keeps to the first one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# By the scorer's identity.
Kept = dict[int, str]

_kept: ContextVar[Kept | None] = ContextVar("kept", default=None)


@contextmanager
def one_reward_model() -> Iterator[Kept]:
    """Keep to one revision of each scorer in the block, and in the tasks that it starts."""
    kept: Kept = {}
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def kept_revisions() -> Kept:
    """The revisions that the current request keeps to; outside of :func:`one_reward_model`, new ones."""
    kept = _kept.get()
    return {} if kept is None else kept
