"""The table of measured settings in the store: the one that mode ``auto`` chooses from, or none."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from service.store.database import Store
from service.store.tables import AutoTableRow

_ONLY = 1  # the id of the only row


def save_auto_table(store: Store, content: Mapping[str, Any], made_at: datetime) -> None:
    """Keep a table, in its JSON form, in the place of the one before.

    Raises:
        StoreError: the database reported an error; nothing was written.
    """
    row = AutoTableRow(
        id=_ONLY, made_at=made_at.astimezone(UTC), updated=datetime.now(UTC), content=dict(content)
    )
    with store.session() as session:
        session.merge(row)


def read_auto_table(store: Store) -> dict[str, Any] | None:
    """The JSON form of the table that is kept; ``None`` if there is none.

    Raises:
        StoreError: the database reported an error.
    """
    with store.session(reads_only=True) as session:
        row = session.get(AutoTableRow, _ONLY)
        return None if row is None else row.content


def delete_auto_table(store: Store) -> bool:
    """Remove the table; returns whether there was one.

    Raises:
        StoreError: the database reported an error.
    """
    with store.session() as session:
        row = session.get(AutoTableRow, _ONLY)
        if row is not None:
            session.delete(row)
        return row is not None
