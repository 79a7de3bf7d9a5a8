"""uvicorn options that bound the size and the duration of a request's head, and the wait for a reader.

uvicorn's httptools protocol has none of these limits. Its h11 protocol, which it takes where httptools is
missing, limits only the bytes of a head and reads a body behind an upgrade as the next request, so it is
never used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.http.early import EarlyAnswer
from service.settings import LimitSettings
from vbon.errors import InvalidInputError

if TYPE_CHECKING:
    from service.http.httptools_protocol import BoundedProtocol

# The longest time that a client may read nothing of its response.
#
# This limit and the shorter one in sse.py overlap for streams, and each does what the other cannot: this one
# covers responses that are not streams, which end up whole in the transport's buffer with no code of ours
# left to watch them; the one in sse.py records the reason as the request's error. It is shorter, so a
# stream is always ended by the limit that records the reason.
UNREAD_S = 90.0


# Descriptors that are kept from connections, so that engines can restart and files can be opened; of few, a
# quarter.
RESERVED_FILES = 64


def http_options(
    limits: LimitSettings, open_files: int | None = None, early: EarlyAnswer | None = None
) -> dict[str, Any]:
    """Arguments of ``uvicorn.Config``.

    Args:
        open_files: the number of files that this process may open; ``None`` for no limit.
        early: answers requests before the application is asked.

    Raises:
        InvalidInputError: httptools is not installed.
    """
    return {
        "timeout_keep_alive": limits.keep_alive_s,
        "http": bounded_protocol(limits, open_files, early),
    }


def bounded_protocol(
    limits: LimitSettings, open_files: int | None = None, early: EarlyAnswer | None = None
) -> type[BoundedProtocol]:
    """uvicorn's httptools protocol with these limits.

    Raises:
        InvalidInputError: httptools is not installed.
    """
    try:
        from service.http.httptools_protocol import BoundedProtocol
    except ModuleNotFoundError as error:
        if error.name != "httptools":
            raise
        raise InvalidInputError(
            "httptools is not installed; without it, the limits on request heads and the rules of HTTP that "
            "docs/security.md promises do not hold: pip install httptools",
            field="limits",
        ) from error

    class Configured(BoundedProtocol):
        """A class of its own, because uvicorn makes the instances and knows nothing of limits."""

    Configured.limits, Configured.unread_s = limits, UNREAD_S
    Configured.early = early
    if open_files is not None:
        Configured.most_descriptor = open_files - min(RESERVED_FILES, open_files // 4)
    return Configured
