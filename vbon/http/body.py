"""Reading of HTTP response bodies up to a size limit."""

from __future__ import annotations

import httpx


async def read_body(response: httpx.Response, most_bytes: int) -> bytes:
    """Read a response's body; the caller limits the time.

    Raises:
        WireError: the body is longer than ``most_bytes``, or compressed.
    """
    check_uncompressed(response)
    pieces, size = [], 0
    async for piece in response.aiter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > most_bytes:
            raise too_long(most_bytes)
    return b"".join(pieces)


def check_uncompressed(response: httpx.Response) -> None:
    """Check that a response is not compressed: a few bytes could become more than memory holds.

    Raises:
        WireError: the response is compressed.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise WireError(f"sent a compressed answer ({encoding[:20]}), which was not requested")


def too_long(most_bytes: int) -> WireError:
    """The error for an answer that exceeds the size limit."""
    return WireError(f"sent an answer of more than {most_bytes} bytes")


class WireError(Exception):
    """A server's answer cannot be used; the message, which follows the server's name, says why."""
