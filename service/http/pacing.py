"""Spaces out bodies that take long to parse, so that the event loop gets to other requests in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from service.context.caller import current_caller
from vbon.errors import OverloadedError

# Seconds that a body takes the event loop, roughly: parsing and validation of each value, and of each byte.
_VALUE_S, _BYTE_S = 5e-6, 15e-9
FREE_S = 2e-3  # bodies that take less are not delayed
SHARE = 0.25  # of the event loop's time, for the larger bodies of all callers together
MOST_WAIT_S = 10.0


class BodyPacer:
    """Delays the larger bodies of callers that send them one after the other.

    Such bodies take at most :data:`SHARE` of the event loop's time, which callers share equally. A caller's
    first one is not delayed.
    """

    def __init__(self, now_s: Callable[[], float] = monotonic) -> None:
        self._now_s = now_s
        self._free_at_s: dict[
            str, float
        ] = {}  # by caller; those that wait for nothing are left out

    async def turn(self, body: bytes) -> None:
        """Wait until a body may be parsed.

        Raises:
            OverloadedError: the caller has sent so many that this one would wait too long.
        """
        cost_s = parsing_s(body)
        if cost_s < FREE_S:
            return
        wait_s = self._reserve(current_caller.get().name, cost_s)
        if wait_s:
            await asyncio.sleep(wait_s)

    def _reserve(self, caller: str, cost_s: float) -> float:
        """Take the next turn of a caller, and return the seconds until then."""
        now_s = self._now_s()
        self._free_at_s = {who: at_s for who, at_s in self._free_at_s.items() if at_s > now_s}
        begin_s = self._free_at_s.get(caller, now_s)
        if begin_s - now_s > MOST_WAIT_S:
            raise OverloadedError(
                f"the large bodies sent before this one take another {begin_s - now_s:.0f} s; send fewer at "
                "once",
                retry_after_s=begin_s - now_s,
            )
        callers = len(self._free_at_s.keys() | {caller})
        self._free_at_s[caller] = begin_s + cost_s * callers / SHARE
        return begin_s - now_s


def parsing_s(body: bytes) -> float:
    """The seconds that parsing and validating a body of JSON may take."""
    return len(body) * _BYTE_S + body.count(b",") * _VALUE_S
