"""Answers to requests that are given without the application, since a task for each would cost too much."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Protocol

from starlette.types import Scope

from service.http.request_head import Fields

# Bodies up to this size are kept until it is known whether the application needs them.
MOST_BODY_BYTES = 65536
# The longest time that a request whose body is incomplete is kept from the application.
HOLD_S = 0.1


class EarlyAnswer(Protocol):
    """Decides whether a request is answered without the application, and how."""

    def concerns(self, method: str, path: str) -> bool:
        """True if such a request may be answered without the application."""

    def response(self, scope: Scope) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
        """Status, header fields and body; ``None`` if the application must be asked."""


def is_plain(headers: Fields, most_bytes: int) -> bool:
    """True for requests with a small body of known length, whose answer needs no headers for browsers."""
    length = b"0"
    for name, value in headers:
        if name in _SPECIAL:
            return False
        if name == b"content-length":
            length = value
    return len(length) < 10 and length.isdigit() and int(length) <= min(most_bytes, MOST_BODY_BYTES)


_SPECIAL = frozenset({b"transfer-encoding", b"expect", b"origin"})


def response_bytes(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A whole HTTP/1.1 response."""
    lines = [b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode())]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
