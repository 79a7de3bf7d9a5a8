"""The rollout of checkpoints in the store: written as a whole or not at all, and read at the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from service.store.database import Store
from service.store.tables import DistilCheckpointRow, DistilEventRow, DistilStateRow

_ONLY = 1  # the id of the only row of the state


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A submitted checkpoint.

    Attributes:
        path: its directory.
        decision: ``verdict``, ``reasons``, ``figures`` and ``spent``, as JSON.
    """

    id: str
    created: datetime
    path: str
    revision: str
    decision: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A change of a checkpoint; ``id`` is the store's, 0 before it is stored."""

    checkpoint: str
    kind: str
    detail: Mapping[str, Any]
    created: datetime
    id: int = 0


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """The rollout as the store has it.

    Attributes:
        state: ``None`` if none was ever stored.
        checkpoints: oldest first.
        events: the newest, oldest first.
        number: of the change that was written last.
    """

    state: dict[str, Any] | None
    checkpoints: list[StoredCheckpoint]
    events: list[StoredEvent]
    number: int = 0


@dataclass(frozen=True, slots=True)
class RolloutChange:
    """A change to be written in one transaction.

    Attributes:
        number: grows with every change. A change that a slow database comes to after a later one is left out.
        statuses: the status of every checkpoint, by id.
        checkpoint: one that was submitted just now.
        known: those that were submitted before. A store that was restored from an older copy gets back those
            that it has lost.
    """

    number: int
    state: Mapping[str, Any]
    statuses: Mapping[str, str]
    events: Sequence[StoredEvent] = ()
    checkpoint: StoredCheckpoint | None = None
    known: Sequence[StoredCheckpoint] = ()
    created: datetime = field(default_factory=lambda: datetime.now(UTC))


def save_rollout(store: Store, change: RolloutChange) -> list[StoredEvent]:
    """Write a change of the rollout, and return its events with the ids that they got.

    Raises:
        StoreError: the database reported an error; nothing was written.
    """
    with store.session() as session:
        state = session.get(DistilStateRow, _ONLY, with_for_update=True)
        if state is None:
            state = DistilStateRow(id=_ONLY, number=0)
            session.add(state)
        if state.number >= change.number:
            return []
        state.number = change.number
        state.state, state.updated = dict(change.state), change.created
        if change.checkpoint is not None:
            session.merge(_row(change.checkpoint, change.statuses[change.checkpoint.id]))
            session.flush()
        rows = {row.id: row for row in session.scalars(select(DistilCheckpointRow))}
        for row in rows.values():
            row.status = change.statuses.get(row.id, row.status)
        lost = [one for one in change.known if one.id not in rows]
        session.add_all(_row(one, change.statuses[one.id]) for one in lost)
        session.flush()
        events = [_event_row(event) for event in change.events]
        session.add_all(events)
        session.flush()
        return [_event(row) for row in events]


def read_rollout(store: Store, *, events: int) -> StoredRollout:
    """The rollout as it was written last.

    Args:
        events: number of the newest events to read.

    Raises:
        StoreError: the database reported an error.
    """
    with store.session(reads_only=True) as session:
        state = session.get(DistilStateRow, _ONLY)
        by_age = select(DistilCheckpointRow).order_by(
            DistilCheckpointRow.created, DistilCheckpointRow.id
        )
        newest = select(DistilEventRow).order_by(DistilEventRow.id.desc()).limit(events)
        return StoredRollout(
            None if state is None else state.state,
            [_checkpoint(row) for row in session.scalars(by_age)],
            [_event(row) for row in session.scalars(newest)][::-1],
            0 if state is None else state.number,
        )


def _row(checkpoint: StoredCheckpoint, status: str) -> DistilCheckpointRow:
    decision = checkpoint.decision
    return DistilCheckpointRow(
        id=checkpoint.id,
        created=checkpoint.created,
        path=checkpoint.path,
        revision=checkpoint.revision,
        status=status,
        verdict=decision["verdict"],
        reasons=decision["reasons"],
        figures=decision["figures"],
        spent=decision["spent"],
    )


def _checkpoint(row: DistilCheckpointRow) -> StoredCheckpoint:
    decision = {
        "verdict": row.verdict,
        "reasons": row.reasons,
        "figures": row.figures,
        "spent": row.spent,
    }
    return StoredCheckpoint(row.id, _utc(row.created), row.path, row.revision, decision)


def _event_row(event: StoredEvent) -> DistilEventRow:
    return DistilEventRow(
        created=event.created,
        checkpoint_id=event.checkpoint,
        kind=event.kind,
        detail=dict(event.detail),
    )


def _event(row: DistilEventRow) -> StoredEvent:
    return StoredEvent(row.checkpoint_id, row.kind, row.detail, _utc(row.created), row.id)


def _utc(time: datetime) -> datetime:
    """The time with its zone, which SQLite does not store. All times are written in UTC."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)
