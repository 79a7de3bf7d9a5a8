"""The keeper of the rollout: its state in memory, and the same in the store.

What persons and the trainer decide is stored first and then takes effect, so that an answer to them holds
after a crash too. What the evidence decides, and a rollback, take effect at once and are stored as soon as
the store allows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from service.distil.rollout import Rollout
from service.distil.rollout_parts import Event, Models, RolloutPlan
from service.distil.totals import TOTALS, AutoTotals
from service.observability.throttled_log import ThrottledLog
from service.store import (
    RolloutChange,
    Store,
    StoredCheckpoint,
    StoredEvent,
    read_rollout,
    save_rollout,
)
from service.store.async_store import AsyncStore
from vbon.errors import NotFoundError, StoreError, VbonError

logger = logging.getLogger(__name__)

Change = Callable[[Rollout], list[Event]]

# Evidence and counts are written this often at most; a crash loses what came since. Decisions do not wait.
SAVE_EVERY_S = 5.0
RETRY_S = 5.0
LIMIT_S = 5.0  # for the store to answer
SHOWN_EVENTS = 200
LOG_EVERY_S = 60.0


class RolloutKeeper:
    """The rollout, its totals, and the checkpoints and events that the store has of it.

    Attributes:
        records: the submitted checkpoints by id.
        stored: whether the store has every decision.
    """

    def __init__(
        self, store: AsyncStore, plan: RolloutPlan, on_events: Callable[[Sequence[Event]], object]
    ) -> None:
        """Keep a rollout that :meth:`start` reads.

        Args:
            on_events: called after every change of a status or a share.
        """
        self._store, self._plan, self._on_events = store, plan, on_events
        self.rollout, self.totals = Rollout(plan), AutoTotals()
        self.records: dict[str, StoredCheckpoint] = {}
        self.stored = True
        self._events: deque[StoredEvent] = deque(maxlen=SHOWN_EVENTS)
        self._unsaved: list[StoredEvent] = []
        self._late: list[Change] | None = None
        self._number = 0
        self._lock = asyncio.Lock()
        self._dirty, self._urgent = asyncio.Event(), asyncio.Event()
        self._trouble: str | None = "has not been read from the store yet"
        self._saving: asyncio.Task[None] | None = None
        self._throttled = ThrottledLog(logger, every_s=LOG_EVERY_S)

    @property
    def read(self) -> bool:
        """True once the state has been read from the store."""
        return self._trouble is None

    @property
    def events(self) -> list[StoredEvent]:
        """The newest events, oldest first; those that are not stored yet have the id 0."""
        return [*self._events, *self._unsaved][-SHOWN_EVENTS:]

    def record(self, name: str) -> StoredCheckpoint:
        """The checkpoint with this id.

        Raises:
            NotFoundError: there is none.
            StoreError: the state could not be read.
        """
        self.check_read()
        if name not in self.records:
            raise NotFoundError(
                f"there is no checkpoint {name!r}; GET /distil/checkpoints lists all"
            )
        return self.records[name]

    def check_read(self) -> None:
        """Check that the state is known.

        Raises:
            StoreError: it could not be read from the store so far.
        """
        if self._trouble is not None:
            raise StoreError(f"the rollout of checkpoints {self._trouble}; try again later")

    def start(self) -> None:
        """Read the state as soon as the store allows, and keep it stored from then on."""
        self._saving = asyncio.create_task(self._read_and_save(), name="store-rollout")

    async def stop(self) -> None:
        """Store what is not stored yet, and end."""
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)
        if self.read and self._dirty.is_set():
            try:
                async with self._lock:
                    await self._write(self.rollout)
            except StoreError as error:
                logger.warning("the latest state of the rollout is not stored: %s", error)

    def touch(self) -> None:
        """Have the counts stored some time soon."""
        self._dirty.set()

    def observe(self, checkpoint: str, win_rate: float, *, flat: bool = False) -> None:
        """Take in a shadowed answer, and act on the evidence."""
        self._apply(lambda rollout: rollout.observe(checkpoint, win_rate, flat=flat))
        self._dirty.set()

    def see_models(self, models: Models) -> None:
        """Take note of the models in use, with which tests begin anew if they have changed."""
        self._apply(lambda rollout: rollout.see_models(models))
        self._dirty.set()

    def fail(self, checkpoint: str, why: str) -> None:
        """Take traffic from a checkpoint that cannot be served."""
        self._apply(lambda rollout: rollout.fail(checkpoint, why))

    async def decide(
        self,
        change: Change,
        checkpoint: StoredCheckpoint | None = None,
    ) -> None:
        """Make a change that takes effect once it is stored.

        Args:
            checkpoint: one that is submitted with this change.

        Raises:
            StoreError: it cannot be stored now, so nothing has changed.
            VbonError: as ``change``.
        """
        self.check_read()
        async with self._lock:
            changed = Rollout.from_json(self.rollout.to_json())
            events = change(changed)
            if not events:
                return
            self._late = []
            try:
                await self._write(changed, _stored(events), checkpoint)
                self.rollout = changed
                if checkpoint is not None:
                    self.records[checkpoint.id] = checkpoint
                self._tell(events)
            finally:
                late, self._late = self._late, None
                for one in late:
                    self._apply(one)

    async def decide_at_once(self, change: Change) -> None:
        """Make a change that takes effect whether or not it can be stored now.

        Raises:
            StoreError: the state is not known.
            VbonError: as ``change``.
        """
        self.check_read()
        if self._late is None:
            self._happened(change(self.rollout))
        else:  # the decision that is being stored comes first
            async with self._lock:
                self._happened(change(self.rollout))
        async with self._lock:
            if self._unsaved:
                try:
                    await self._write(self.rollout)
                except StoreError as error:
                    self._not_stored(error)

    def _apply(self, change: Change) -> None:
        """Make a change at once, or right after the decision that is being stored."""
        if self._late is not None:
            self._late.append(change)
        else:
            self._happened(change(self.rollout))

    def _happened(self, events: Sequence[Event]) -> None:
        """Take note of changes that have taken effect."""
        if not events:
            return
        self._unsaved += _stored(events)
        self.stored = False
        self._dirty.set()
        self._urgent.set()
        self._tell(events)

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            logger.info("checkpoint %s: %s %s", event.checkpoint, event.kind, dict(event.detail))
        self._on_events(events)

    async def _read_and_save(self) -> None:
        while self._trouble is not None:
            try:
                await self._read()
            except StoreError as error:
                self._trouble = f"cannot be read from the store: {error}"
                self._throttled.warn(f"mode auto is best-of-N: its rollout {self._trouble}")
                await asyncio.sleep(RETRY_S)
        while True:
            await self._dirty.wait()
            try:
                async with asyncio.timeout(SAVE_EVERY_S):
                    await self._urgent.wait()
            except TimeoutError:
                pass
            self._dirty.clear()
            self._urgent.clear()
            try:
                async with self._lock:
                    await self._write(self.rollout)
            except StoreError as error:
                self._not_stored(error)
                await asyncio.sleep(RETRY_S)

    async def _read(self) -> None:
        found = await self._use(lambda store: read_rollout(store, events=SHOWN_EVENTS))
        if found.state is not None:
            try:
                rollout = Rollout.from_json(json.dumps(found.state["rollout"]))
                totals = TOTALS.validate_python(found.state["totals"])
            except (LookupError, TypeError, ValidationError) as error:
                raise StoreError(f"its state is damaged: {type(error).__name__}") from error
            self.rollout, self.totals, self._number = rollout, totals, found.number
        # A submission that was given up, since the store took too long, may have left its row.
        submitted = {one.id for one in self.rollout.checkpoints}
        self.records = {one.id: one for one in found.checkpoints if one.id in submitted}
        self._events.extend(found.events)
        self._trouble = None
        self._happened(self.rollout.change_plan(self._plan))
        self._tell([])

    async def _write(
        self,
        rollout: Rollout,
        events: Sequence[StoredEvent] = (),
        checkpoint: StoredCheckpoint | None = None,
    ) -> None:
        """Write a state, the events that wait and further ones; the lock must be held."""
        waiting = len(self._unsaved)
        # Of the clock, so that it is also later than those of a copy that the store was restored from.
        self._number = max(self._number + 1, time.time_ns() // 1_000_000)
        change = RolloutChange(
            self._number,
            {
                "rollout": json.loads(rollout.to_json()),
                "totals": TOTALS.dump_python(self.totals, mode="json"),
            },
            {one.id: one.status for one in rollout.checkpoints},
            [*self._unsaved, *events],
            checkpoint,
            list(self.records.values()),
        )
        self._events.extend(await self._use(lambda store: save_rollout(store, change)))
        del self._unsaved[:waiting]
        self.stored = not self._unsaved

    async def _use(self, work: Callable[[Store], Any]) -> Any:
        try:
            async with asyncio.timeout(LIMIT_S):
                return await self._store.use(work)
        except TimeoutError:
            raise StoreError(f"the store did not answer within {LIMIT_S:g} s") from None
        except VbonError:
            raise
        except Exception as error:  # what the store holds may be anything
            raise StoreError(f"what it holds is damaged: {type(error).__name__}") from error

    def _not_stored(self, error: StoreError) -> None:
        self._throttled.warn(
            f"the rollout is not stored, and is tried again every {RETRY_S:g} s: {error}"
        )
        self._dirty.set()
        self._urgent.set()


def _stored(events: Sequence[Event]) -> list[StoredEvent]:
    now = datetime.now(UTC)
    return [StoredEvent(one.checkpoint, one.kind, dict(one.detail), now) for one in events]
