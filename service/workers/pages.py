"""The metrics of all workers, gathered by their parent whenever one of them is asked for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

from prometheus_client import CollectorRegistry, Metric

from service.wire.hosted import MetricParts
from service.wire.interface import interface_of
from service.workers.summed import counted, summed

# A worker that does not report in this time counts with what it reported last.
PATIENCE_S = 1.0
# Reports are asked for this often, so that a worker that dies takes little with it.
EVERY_S = 5.0
# Workers without a connection whose counts are kept apart, in case they connect again.
_MOST_AWAY = 64
# Only the parent restarts parts.
_PARENTS = frozenset({"vbon:restarts", "vbon:recovery_seconds"})


class MetricPages:
    """The latest report of each worker, and the counts of those that have ended.

    Args:
        own: the parent's metrics.
    """

    def __init__(self, own: CollectorRegistry) -> None:
        self._own = own
        self._asked = 0
        self._reported: dict[str, int] = {}
        self._pages: dict[str, list[Metric]] = {}
        # A worker that was silent for too long connects again, with the same counts.
        self._connections: dict[str, object] = {}
        self._away: dict[str, list[Metric]] = {}
        self._ended: list[Metric] = []
        self._changed = asyncio.Condition()

    async def wanted(self, worker: str) -> AsyncGenerator[int, None]:
        """Yield a number for each report that is wanted, for as long as the worker lives."""
        connection = self._connections[worker] = object()
        self._reported[worker] = 0
        self._pages[worker] = self._away.pop(worker, []) or self._pages.get(worker, [])
        told = -1
        try:
            while True:
                if told == self._asked:
                    await self._next_question()
                told = self._asked
                yield told
        finally:
            if self._connections.get(worker) is connection:  # otherwise a later one has taken over
                del self._connections[worker], self._reported[worker]
                self._put_away(worker, counted(self._pages.pop(worker)))
                await self._notify()

    async def report(self, worker: str, number: int, page: list[MetricParts]) -> None:
        """Take the report of a worker, which answers the question of this number."""
        if worker in self._reported:
            self._reported[worker] = number
            self._pages[worker] = [one.metric for one in page if one.name not in _PARENTS]
            await self._notify()

    async def sum(self) -> list[MetricParts]:
        """The metrics of all workers now, and the parent's."""
        self._asked += 1
        asked = self._asked
        await self._notify()
        try:
            async with asyncio.timeout(PATIENCE_S), self._changed:
                await self._changed.wait_for(
                    lambda: all(number >= asked for number in self._reported.values())
                )
        except TimeoutError:
            pass
        parents = [family for family in self._own.collect() if family.name in _PARENTS]
        known = [*self._away.values(), *self._pages.values()]
        pages: Iterable[Iterable[Metric]] = [self._ended, *known, parents]
        return [MetricParts.of(family) for family in summed(pages)]

    def _put_away(self, worker: str, counts: list[Metric]) -> None:
        self._away[worker] = counts
        if len(self._away) > _MOST_AWAY:
            oldest = self._away.pop(next(iter(self._away)))
            self._ended = summed([self._ended, oldest])

    async def _next_question(self) -> None:
        asked = self._asked
        try:
            async with asyncio.timeout(EVERY_S), self._changed:
                await self._changed.wait_for(lambda: self._asked > asked)
        except TimeoutError:
            self._asked += 1

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


PAGES = interface_of(MetricPages, "wanted", "report", "sum", lasting=("wanted",))
