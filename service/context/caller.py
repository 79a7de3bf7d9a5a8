"""Who asks: the API key behind the request at hand."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """A key's holder and what it may use.

    Attributes:
        name: the key's; empty where the server asks for no keys.
        max_sequences: candidates in the engines at once.
        tokens_per_minute: tokens decoded a minute, discarded candidates included.
    """

    name: str
    is_admin: bool = False
    max_sequences: int | None = None
    tokens_per_minute: int | None = None


ANYBODY = Caller("")

# Tasks that a request starts inherit it, so nothing between the middleware and admission passes it on.
current_caller: ContextVar[Caller] = ContextVar("current_caller", default=ANYBODY)
