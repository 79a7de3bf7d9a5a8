"""The store for use on the event loop: it opens on first use and works in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vbon.errors import NotFoundError

if TYPE_CHECKING:
    from service.store import Store

T = TypeVar("T")


class AsyncStore:
    """Load tests and preferences, read and written off the event loop.

    The store opens on first use, so a service that never uses it creates no file.

    Attributes:
        where: a file or a database URL; ``None`` if nothing is stored.
    """

    def __init__(self, where: str | None) -> None:
        self.where = where
        self._store: Store | None = None
        self._opening = asyncio.Lock()

    async def use(self, work: Callable[[Store], T]) -> T:
        """Run ``work`` with the open store in a thread and return its result.

        Raises:
            NotFoundError: the service has no store.
            StoreError: the store cannot be opened or used.
        """
        if self.where is None:
            raise NotFoundError(
                "this service has no store; start it with --store FILE or --store URL"
            )
        async with self._opening:
            if self._store is None:
                self._store = await asyncio.to_thread(_open, self.where)
        return await asyncio.to_thread(work, self._store)

    def close(self) -> None:
        """Close the store if it is open."""
        if self._store is not None:
            self._store.close()
            self._store = None


def _open(where: str) -> Store:
    from service.store import open_store  # SQLAlchemy takes a while to import

    return open_store(where)
