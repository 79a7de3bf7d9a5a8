"""The caller of the current request: the holder of its API key."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of an API key, and the key's limits; ``None`` means no limit.

    Attributes:
        name: name of the key; empty if the server requires no keys.
        max_sequences: most candidates in the engines at once.
        tokens_per_minute: most tokens decoded a minute, including those of discarded candidates.
    """

    name: str
    is_admin: bool = False
    max_sequences: int | None = None
    tokens_per_minute: int | None = None


ANYBODY = Caller("")

# Tasks inherit context variables from the task that starts them, so the caller need not be passed from the
# middleware down to admission.
current_caller: ContextVar[Caller] = ContextVar("current_caller", default=ANYBODY)
