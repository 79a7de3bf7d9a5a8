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
        self._ended: list[Metric] = []
        self._changed = asyncio.Condition()

    async def wanted(self, worker: str) -> AsyncGenerator[int, None]:
        """Yield a number for each report that is wanted, for as long as the worker lives."""
        self._reported[worker], self._pages[worker] = 0, []
        told = -1
        try:
            while True:
                if told == self._asked:
                    await self._next_question()
                told = self._asked
                yield told
        finally:
            self._ended = summed([self._ended, counted(self._pages.pop(worker))])
            del self._reported[worker]
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
        pages: Iterable[Iterable[Metric]] = [self._ended, *self._pages.values(), parents]
        return [MetricParts.of(family) for family in summed(pages)]

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
