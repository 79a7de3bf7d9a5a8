"""The table of measured settings that a service chooses from: from a file, the store or a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from service.auto.choice import Prices
from service.auto.usable import State, Usable, state_of, usable_rows
from service.runtime.runtime import Runtime
from service.settings import AUTO
from service.store import Store, delete_auto_table, read_auto_table, save_auto_table
from service.store.async_store import AsyncStore
from vbon.concurrency import forget_failure
from vbon.errors import InvalidInputError, NotFoundError, StoreError
from vbon.measured.hardware import describe_hardware
from vbon.measured.table import MeasuredTable, read_table
from vbon.storage.validation import first_problem

logger = logging.getLogger(__name__)

_NONE = "this server has no table of measured settings"
RETRY_S = 5.0  # between attempts to read a store that cannot be used
Source = Literal["file", "store", "request"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TableState:
    """The table of one process, for others that use the same one.

    Attributes:
        version: counts the changes, so that a table that is set again is told.
        table: its content; ``None`` if there is none.
        known: false until the store, which may have one, was asked.
    """

    version: int
    table: dict[str, Any] | None
    source: Source
    stored: bool
    known: bool


class TableInUse:
    """The table in use, and which of its rows describe what is served now.

    Attributes:
        table: ``None`` if there is none.
        source: where it came from.
        stored: whether the store has it.
        changed: set, and replaced by another one, when the state is another one.
    """

    def __init__(
        self,
        runtime: Runtime,
        store: AsyncStore,
        prices: Prices,
        on_change: Callable[[], object],
    ) -> None:
        """Use the file of the settings, if there is one.

        Args:
            on_change: called when there is another table, or none any more.

        Raises:
            DataError: the file cannot be read, or is not a table.
        """
        self._runtime, self._store, self._prices = runtime, store, prices
        self._on_change = on_change
        self.table: MeasuredTable | None = None
        self.source: Source = "file"
        self.stored = False
        self._known: tuple[State, Usable] | None = None
        self._changing = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._first_read = asyncio.Event()
        self.changed = asyncio.Event()
        self._version = 0
        if runtime.settings.auto.table is not None:
            self.table = read_table(Path(runtime.settings.auto.table).expanduser())

    @property
    def state(self) -> TableState:
        """The table now, with where it came from."""
        return TableState(
            self._version,
            None if self.table is None else self.table.model_dump(mode="json"),
            self.source,
            self.stored,
            self._first_read.is_set(),
        )

    async def follow(self, state: TableState) -> None:
        """Use the table of another process, which has checked it."""
        try:
            table = None if state.table is None else MeasuredTable.model_validate(state.table)
        except ValidationError as error:
            logger.warning("the table of another process cannot be used: %s", first_problem(error))
            return
        if table is not None:  # known before a request asks, because it may take seconds
            await asyncio.to_thread(describe_hardware)
        async with self._changing:
            if table != self.table:
                self._adopt(table, state.source)
            self.source, self.stored = state.source, state.stored

    @property
    def concurrency(self) -> int | None:
        """The number of requests in flight while latency was measured."""
        return None if self.table is None else self.table.concurrency

    def usable(self) -> Usable:
        """The rows that can be used now; they are compared again whenever a model has changed."""
        table = self.table
        if table is None:
            return Usable((), ("This server has no table of measured settings.",), {})
        state = (id(table), *state_of(self._runtime))
        if self._known is None or self._known[0] != state:
            found = usable_rows(table, self._runtime, self._prices, describe_hardware())
            self._known = (state, found)
            if not found.rows:
                logger.warning("mode auto has no usable setting: %s", " ".join(found.reasons[:3]))
        return self._known[1]

    def start(self) -> None:
        """Read what the store has, and try again for as long as it cannot be used."""
        if self._reading is None and self._store.exists:
            self._reading = asyncio.create_task(self._read(), name="read-auto-table")
        else:
            self._first_read.set()
            self._tell_change()

    async def until_read(self) -> None:
        """Wait until the store has been asked once, and the hardware is known."""
        await self._first_read.wait()
        if self.table is not None:
            await asyncio.to_thread(describe_hardware)  # of the file's table

    async def stop(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def put(self, table: MeasuredTable) -> None:
        """Use a table from now on, and keep it in the store if there is one.

        Raises:
            InvalidInputError: none of its rows can be used here, or a policy has the name of the mode.
            StoreError: it could not be kept, and the table before stays in use.
        """
        if AUTO in self._runtime.policies:
            raise InvalidInputError(
                f"a policy of this server is named {AUTO!r}, like the mode that a table adds; rename it",
                field="body",
            )
        hardware = await asyncio.to_thread(describe_hardware)
        found = usable_rows(table, self._runtime, self._prices, hardware)
        if not found.rows:
            raise InvalidInputError(
                "none of the table's settings can be used here; measure again on this server. "
                + " ".join(found.reasons[:3]),
                field="body",
            )
        content = table.model_dump(mode="json")

        def keep(store: Store) -> None:
            save_auto_table(store, content, table.made_at)

        await self._change(keep, lambda: self._adopt(table, "request"))

    async def delete(self) -> None:
        """Use no table from now on, and remove it from the store.

        A store that was not read yet may have one that would be used later, so it is asked.

        Raises:
            NotFoundError: there is none.
            StoreError: it could not be removed, and stays in use.
        """
        unread = self._reading is not None and not self._reading.done()
        had_one = self.table is not None
        if not had_one and not unread:
            raise NotFoundError(_NONE)
        removed: list[bool] = []
        await self._change(
            lambda store: removed.append(bool(delete_auto_table(store))), lambda: self._adopt(None)
        )
        if not had_one and not any(removed):
            raise NotFoundError(_NONE)

    async def _change(self, work: Callable[[Store], object], then: Callable[[], None]) -> None:
        """Change the store and then the table in use, in one piece: a client that leaves stops neither."""

        async def both() -> None:
            async with self._changing:
                if self._store.where is not None:
                    await self._store.use(work)
                then()
                self.stored = self._store.where is not None and self.table is not None
                self._tell_change()

        changing = asyncio.create_task(both(), name="change-auto-table")
        changing.add_done_callback(forget_failure)
        await asyncio.shield(changing)

    def _adopt(self, table: MeasuredTable | None, source: Source = "request") -> None:
        self.table, self.source, self._known = table, source, None
        self._on_change()
        logger.info(
            "mode auto has %s", "no table" if table is None else f"{len(table.rows)} settings"
        )

    async def _read(self) -> None:
        try:
            while True:
                try:
                    content = await self._store.use(read_auto_table)
                    break
                except StoreError as error:
                    logger.warning("the table of mode auto was not read yet: %s", error)
                    self._first_read.set()
                    await asyncio.sleep(RETRY_S)
            if content is not None:  # known before a request asks, because it may take seconds
                await asyncio.to_thread(describe_hardware)
            self._take(content)
        finally:
            self._first_read.set()
            self._tell_change()

    def _tell_change(self) -> None:
        self._version += 1
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def _take(self, content: object) -> None:
        """Use a table of the store, unless that of the file was made later."""
        if content is None:
            return
        try:
            table = MeasuredTable.model_validate(content)
        except ValidationError as error:
            logger.warning("the table of the store cannot be used: %s", first_problem(error))
            return
        if self.source == "request":
            return  # one has arrived meanwhile
        if self.table is not None and self.table.made_at > table.made_at:
            logger.warning("the table of the store is older than that of the file, which is used")
            return
        self._adopt(table, "store")
        self.stored = True
