"""The store as the service uses it: opened when first needed, worked in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vbon.errors import NotFoundError

if TYPE_CHECKING:
    from service.store import Store

T = TypeVar("T")


class AsyncStore:
    """Runs and preferences, off the event loop.

    Opened late, so that a service nobody asks for records makes no file.
    """

    def __init__(self, where: str | None) -> None:
        self.where = where
        self._store: Store | None = None
        self._opening = asyncio.Lock()

    async def use(self, work: Callable[[Store], T]) -> T:
        """What ``work`` makes of the store, in a thread.

        Raises:
            NotFoundError: the service keeps none.
            StoreError: it cannot be opened or used.
        """
        if self.where is None:
            raise NotFoundError(
                "this service keeps no records; start it with --store FILE or a URL"
            )
        async with self._opening:
            if self._store is None:
                self._store = await asyncio.to_thread(_open, self.where)
        return await asyncio.to_thread(work, self._store)

    def close(self) -> None:
        """Close what was opened."""
        if self._store is not None:
            self._store.close()
            self._store = None


def _open(where: str) -> Store:
    from service.store import open_store  # SQLAlchemy takes a while to import

    return open_store(where)
