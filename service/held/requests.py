"""Requests as front ends forward them to the holder, and their answers."""

from __future__ import annotations

from dataclasses import dataclass

from service.context.caller import Caller

Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that a front end has received, authenticated and found to be within the limits.

    Attributes:
        server: the address at which it arrived; ``None`` for a Unix socket without a path.
    """

    method: str
    path: str
    query: bytes
    headers: Fields
    body: bytes
    scheme: str
    server: tuple[str, int | None] | None
    request_id: str
    caller: Caller


@dataclass(frozen=True, slots=True)
class Answered:
    """The whole response.

    Attributes:
        error: the type of the error in it; empty if there is none.
    """

    status: int
    headers: Fields
    body: bytes
    error: str = ""
