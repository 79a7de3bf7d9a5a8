"""The store for use on the event loop: it opens on first use and works in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vbon.concurrency import forget_failure
from vbon.errors import NotFoundError, StoreError
from vbon.threads import Threads

if TYPE_CHECKING:
    from service.store import Store

S = TypeVar("S")
T = TypeVar("T")
logger = logging.getLogger(__name__)

# A request waits this long for a thread, and as long again for a lock of the database.
PATIENCE_S = 2.0
_THREADS = 8
_SQLITE = "sqlite:///"


class AsyncStore:
    """Load tests and preferences, read and written off the event loop.

    The store opens on first use, so a service that never uses it creates no file. A store that hangs or is
    locked holds its own threads only.

    Attributes:
        where: a file or a database URL; ``None`` if nothing is stored.

    Raises:
        StoreError: the directory of the file does not exist, or the file is a directory.
    """

    def __init__(self, where: str | None) -> None:
        check_place(where)
        self.where = where
        self._store: Store | None = None
        self._opening: asyncio.Task[Store] | None = None
        self._threads = Threads("store", _THREADS)
        self._free = asyncio.Semaphore(_THREADS)

    @property
    def exists(self) -> bool:
        """True unless there is no store, or it is a SQLite file that is still to be made."""
        if self.where is None:
            return False
        name = _sqlite_file(self.where)
        return name is None or Path(name).exists()

    async def use(self, work: Callable[[Store], T]) -> T:
        """Run ``work`` with the open store in a thread and return its result.

        Raises:
            NotFoundError: the service has no store.
            StoreError: the store cannot be opened or used now.
        """
        if self.where is None:
            raise NotFoundError(
                "this service has no store; start it with --store FILE or --store URL"
            )
        for _ in range(2):
            store = await self._opened(self.where)
            with contextlib.suppress(_ReplacedError):
                return await self._run(lambda opened: _use(opened, work), store)
            await self._forget(store)
        raise StoreError("the file of the store is being replaced; try again")

    async def _opened(self, where: str) -> Store:
        if self._store is None:
            # Concurrent requests share one attempt and its failure.
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._open(where), name="open-store")
                self._opening.add_done_callback(forget_failure)
            self._store = await asyncio.shield(self._opening)
        return self._store

    async def _forget(self, store: Store) -> None:
        """Close a store whose file was replaced, so that the next use opens the file that is there now."""
        if self._store is store:
            logger.warning("the file of the store was deleted or replaced, so it is opened anew")
            self._store = None
        await self._run(lambda opened: opened.close(), store)

    async def _open(self, where: str) -> Store:
        try:
            return await self._run(_open, where)
        except StoreError as error:  # its message contains the place of the store
            raise StoreError(
                "the store of this server cannot be opened at present; its log says why",
                log_text=error.log_text or str(error),
            ) from error

    async def _run(self, work: Callable[[S], T], argument: S) -> T:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._free.acquire()
        except TimeoutError:
            raise StoreError(
                f"the store is busy: all its {_THREADS} threads have been waiting for it for {PATIENCE_S:g} s"
            ) from None
        running = asyncio.ensure_future(self._threads.run(work, argument))
        # A thread cannot be interrupted: its place is free when it has ended, not when its request has.
        running.add_done_callback(self._done)
        return await asyncio.shield(running)

    def _done(self, running: asyncio.Future[T]) -> None:
        self._free.release()
        forget_failure(running)

    def close(self) -> None:
        """Close the store if it is open."""
        self._threads.close()
        if self._store is not None:
            self._store.close()
            self._store = None


class _ReplacedError(Exception):
    """The file of the store is not the one that was opened."""


def _use(store: Store, work: Callable[[Store], T]) -> T:
    if store.was_replaced:
        raise _ReplacedError
    return work(store)


def check_place(where: str | None) -> None:
    """Check that a SQLite file can be where it is configured; log a warning if it cannot be written.

    Raises:
        StoreError: its directory does not exist, or it is a directory.
    """
    name = None if where is None else _sqlite_file(where)
    if name is None:
        return
    path = Path(name)
    if not path.parent.is_dir():
        raise StoreError(
            f"the directory of the store {name} does not exist; create it, name another file with --store, "
            "or store nothing with --store none"
        )
    if path.is_dir():
        raise StoreError(f"the store {name} is a directory; name a file with --store")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        logger.warning(
            "the store %s cannot be written, so load tests and verdicts are not kept", name
        )


def _sqlite_file(where: str) -> str | None:
    """The file of a SQLite store; ``None`` for other databases, and for one in memory."""
    if "://" in where and not where.startswith(_SQLITE):
        return None
    name = where.removeprefix(_SQLITE).partition("?")[0]
    return None if not name or name.startswith((":memory:", "file:")) else name


def _open(where: str) -> Store:
    from service.store import open_store  # SQLAlchemy takes a while to import

    return open_store(where, patience_s=PATIENCE_S)
