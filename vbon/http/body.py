"""Reading the body of an HTTP response within bounds."""

from __future__ import annotations

import httpx


async def read_body(response: httpx.Response, most_bytes: int) -> bytes:
    """A body that is not longer than that; how long it may take is for the caller to limit.

    Raises:
        WireError: it is longer, or compressed.
    """
    _check_plain(response)
    pieces, size = [], 0
    async for piece in response.aiter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > most_bytes:
            raise _too_long(most_bytes)
    return b"".join(pieces)


def _check_plain(response: httpx.Response) -> None:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise WireError(f"answered compressed ({encoding[:20]}), which it was not asked for")


def _too_long(most_bytes: int) -> WireError:
    return WireError(f"answered more than {most_bytes} bytes")


class WireError(Exception):
    """An answer that cannot be used; its text says why."""
