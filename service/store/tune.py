"""Runs of ``vbon tune`` in the store: the latest report of each, and its table of measured settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import defer

from service.store.database import Store
from service.store.tables import TuneRunRow, storable

MOST_RUNS = 50  # kept; of more, those without news for longest are removed


@dataclass(frozen=True, slots=True)
class TuneRunSummary:
    """A run without its report.

    Attributes:
        started: when its first report came; ``updated``, its last one.
        next_within_s: seconds within which it reports again, unless it has ended.
        trials: those that have ended.
    """

    id: str
    started: datetime
    updated: datetime
    next_within_s: float
    status: str
    question: str
    trials: int


@dataclass(frozen=True, slots=True)
class StoredTuneRun:
    """A run with its latest report and its table, as JSON."""

    summary: TuneRunSummary
    report: dict[str, Any]
    table: dict[str, Any] | None


def save_tune_run(
    store: Store, run_id: str, report: Mapping[str, Any], now: datetime | None = None
) -> bool:
    """Keep a report, in the JSON form of ``vbon.measured.tuning_run.TuningReport``, as the run's latest.

    A report that was under way for long may arrive after later ones. Once a run has ended, only an end of the
    same start replaces its report, and the report of a later start one of an earlier start.

    Returns:
        whether it was kept.

    Raises:
        StoreError: the database reported an error; nothing was written.
    """
    now = datetime.now(UTC) if now is None else now
    with store.session() as session:
        row = session.get(TuneRunRow, run_id, with_for_update=True)
        if row is None:
            row = TuneRunRow(id=run_id, started=now)
            session.add(row)
        elif _is_late(report, row.report):
            return False
        row.updated = now
        row.status = report["status"]
        row.question = storable(report["question"]["text"])
        row.trials, row.next_within_s = report["trials_done"], report["next_within_s"]
        row.report = dict(report)
        session.flush()
        by_news = select(TuneRunRow.id).order_by(TuneRunRow.updated.desc(), TuneRunRow.id)
        old = list(session.scalars(by_news.offset(MOST_RUNS)))
        if old:
            session.execute(delete(TuneRunRow).where(TuneRunRow.id.in_(old)))
    return True


def _is_late(report: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Tell whether a report was made before the one that is known; one of another version decides nothing."""
    try:
        made, before = (datetime.fromisoformat(one["started"]) for one in (report, known))
        ended = known["status"] != "running"
        return made < before or (made == before and ended and report["status"] == "running")
    except (KeyError, TypeError, ValueError):
        return False


def save_tune_table(store: Store, run_id: str, table: Mapping[str, Any]) -> bool:
    """Keep the table of a run; returns whether there is such a run.

    Raises:
        StoreError: the database reported an error; nothing was written.
    """
    with store.session() as session:
        row = session.get(TuneRunRow, run_id)
        if row is not None:
            row.measured, row.updated = dict(table), datetime.now(UTC)
        return row is not None


def list_tune_runs(store: Store) -> list[TuneRunSummary]:
    """All runs, the one that started last first.

    Raises:
        StoreError: the database reported an error.
    """
    columns = (defer(TuneRunRow.report), defer(TuneRunRow.measured))
    query = select(TuneRunRow).options(*columns)
    query = query.order_by(TuneRunRow.started.desc(), TuneRunRow.id)
    with store.session(reads_only=True) as session:
        return [_summary(row) for row in session.scalars(query)]


def read_tune_run(store: Store, run_id: str) -> StoredTuneRun | None:
    """The run with this id, or ``None``.

    Raises:
        StoreError: the database reported an error.
    """
    with store.session(reads_only=True) as session:
        row = session.get(TuneRunRow, run_id)
        return None if row is None else StoredTuneRun(_summary(row), row.report, row.measured)


def delete_tune_run(store: Store, run_id: str) -> bool:
    """Remove a run; returns whether there was one.

    Raises:
        StoreError: the database reported an error.
    """
    with store.session() as session:
        row = session.get(TuneRunRow, run_id)
        if row is not None:
            session.delete(row)
        return row is not None


def _summary(row: TuneRunRow) -> TuneRunSummary:
    return TuneRunSummary(
        row.id,
        _utc(row.started),
        _utc(row.updated),
        row.next_within_s,
        row.status,
        row.question,
        row.trials,
    )


def _utc(time: datetime) -> datetime:
    """The time with its zone, which SQLite does not store. All times are written in UTC."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)
