"""The leases of one front end at an admission, by numbers that the front end gives them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from service.admission.admission import Admission
from service.admission.asks import Ask, Lease


class GoneError(Exception):
    """The request no longer waits here, because these leases have ended; it must ask again elsewhere."""


class Leases:
    """The requests of one front end that wait at an admission or hold its places."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._leases: dict[int, Lease] = {}
        self._ended = False

    async def enter(self, number: int, ask: Ask) -> None:
        """Wait for the places of a request.

        Raises:
            OverloadedError, InvalidInputError: as :meth:`service.admission.admission.Admission.request`.
            GoneError: the request left the queue meanwhile.
        """
        if self._ended:
            raise GoneError
        lease = self._admission.request(ask)
        self._leases[number] = lease
        try:
            await lease.decided()
        except asyncio.CancelledError:
            # It may have been admitted in the same moment.
            self._release(number, lease, 0, used=False)
            raise
        if not lease.runs:
            raise GoneError

    def adopt(self, number: int, ask: Ask, *, charged: bool = False) -> None:
        """Count a request that runs already, as :meth:`Admission.adopt`."""
        if not self._ended:
            self._leases[number] = self._admission.adopt(ask, charged=charged)

    def leave(self, number: int, decoded: int | None, *, used: bool = True) -> None:
        """Give back the places of a request, or its place in the queue; one that is not known has none.

        Args:
            decoded: the tokens decoded in all; ``None`` charges the largest possible number.
            used: whether the request ran.
        """
        if (lease := self._leases.get(number)) is not None:
            self._release(number, lease, decoded, used=used)

    def keep_only(self, numbers: Collection[int]) -> None:
        """Give back the places of all other requests, whose leaving has not been told."""
        self._abandon(self._leases.keys() - set(numbers))

    def end(self) -> frozenset[int]:
        """Give back everything, for good, and return the requests that ran, whose tokens stay charged."""
        self._ended = True
        ran = frozenset(number for number, lease in self._leases.items() if lease.runs)
        self._abandon(self._leases)
        return ran

    def _abandon(self, numbers: Collection[int]) -> None:
        """Give back places, those in the queue first, so that none of them is admitted now."""
        leases = sorted(((number, self._leases[number]) for number in numbers), key=_runs)
        for number, lease in leases:
            self._release(number, lease, None if lease.runs else 0, used=False)

    def _release(self, number: int, lease: Lease, decoded: int | None, *, used: bool) -> None:
        if self._leases.get(number) is lease:
            del self._leases[number]
        self._admission.release(lease, decoded, used=used)


def _runs(item: tuple[int, Lease]) -> bool:
    return item[1].runs
