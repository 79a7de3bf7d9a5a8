"""Runs of ``vbon tune`` that reported to this service: kept in the store, and applied to mode ``auto``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import ValidationError

from service.auto.table_in_use import TableInUse
from service.store import (
    StoredTuneRun,
    TuneRunSummary,
    delete_tune_run,
    list_tune_runs,
    read_tune_run,
    save_tune_run,
    save_tune_table,
)
from service.store.async_store import AsyncStore
from vbon.errors import BusyError, InvalidInputError, NotFoundError
from vbon.measured.table import MeasuredTable
from vbon.measured.tuning_run import TuningReport

logger = logging.getLogger(__name__)

# The recommended setting alone, or all that the run measured.
Applied = Literal["recommended", "measured"]


@dataclass(frozen=True, slots=True)
class TuneRun:
    """A run with its latest report.

    Attributes:
        report: ``None`` if another version of this program kept it.
        has_table: whether its measured settings can be applied.
        applied: the part of it that mode ``auto`` has now; ``None`` if it has another table, or none.
    """

    summary: TuneRunSummary
    report: TuningReport | None
    has_table: bool
    applied: Applied | None


class TuneRuns:
    """The runs in the store; without a store, there are none."""

    def __init__(self, store: AsyncStore, table: TableInUse) -> None:
        self._store, self._table = store, table

    async def summaries(self) -> list[TuneRunSummary]:
        """All runs, the one that started last first.

        Raises:
            NotFoundError: the service has no store.
            StoreError: the store cannot be used now.
        """
        if self._store.where is not None and not self._store.exists:
            return []  # reading makes no file
        return await self._store.use(list_tune_runs)

    async def get(self, run_id: str) -> TuneRun:
        """A run.

        Raises:
            NotFoundError: there is none with this id, or no store.
            StoreError: the store cannot be used now.
        """
        found = await self._read(run_id)
        report, table = _report(found), _table(found)
        return TuneRun(found.summary, report, table is not None, self._applied(report, table))

    async def report(self, run_id: str, report: TuningReport) -> None:
        """Keep a report as the run's latest.

        Raises:
            BusyError: the run has ended since, or was started again, and has reported that.
            NotFoundError: the service has no store.
            StoreError: it could not be kept.
        """
        content = report.model_dump(mode="json")
        if not await self._store.use(lambda store: save_tune_run(store, run_id, content)):
            raise BusyError(
                f"run {run_id} has reported its end or a later start, which stays; if this start is the "
                "later one, the clocks of the two differ: set them, remove the run "
                f"(DELETE /tune/runs/{run_id}), and start it again"
            )

    async def keep_table(self, run_id: str, table: MeasuredTable) -> None:
        """Keep all settings that a run measured, so that they can be applied.

        Raises:
            NotFoundError: no run has this id, or the service has no store.
            StoreError: they could not be kept.
        """
        content = table.model_dump(mode="json")
        if not await self._store.use(lambda store: save_tune_table(store, run_id, content)):
            raise _unknown(run_id)

    async def apply(self, run_id: str, part: Applied) -> TuneRun:
        """Use the recommended setting, or all measured ones, as the table of mode ``auto``.

        Raises:
            NotFoundError: no run has this id, or the service has no store.
            InvalidInputError: the run has no such settings, or none of them can be used now, because other
                models or another machine were measured.
            StoreError: the table could not be kept, and the one before stays in use.
        """
        found = await self._read(run_id)
        report, table = _report(found), _table(found)
        if table is None:
            raise InvalidInputError(
                f"run {run_id} has not sent its measured settings, which it does at its end; wait for that, "
                "or send its table.json with PUT /auto/table",
                field="body",
            )
        if part == "recommended":
            alone = None if report is None else _recommended(report, table)
            if alone is None:
                raise InvalidInputError(
                    f"run {run_id} recommends no setting; apply all that it measured, or tune again",
                    field="settings",
                )
            table = alone
        await self._table.put(table)
        logger.info("the %s settings of tuning run %s are applied", part, run_id)
        return await self.get(run_id)

    async def delete(self, run_id: str) -> None:
        """Remove a run; the table of mode ``auto`` stays as it is.

        Raises:
            NotFoundError: no run has this id, or the service has no store.
            StoreError: it could not be removed.
        """
        if not await self._store.use(lambda store: delete_tune_run(store, run_id)):
            raise _unknown(run_id)

    async def _read(self, run_id: str) -> StoredTuneRun:
        found = await self._store.use(lambda store: read_tune_run(store, run_id))
        if found is None:
            raise _unknown(run_id)
        return found

    def _applied(self, report: TuningReport | None, table: MeasuredTable | None) -> Applied | None:
        used = self._table.table
        if table is None or used is None:
            return None
        if used == table:
            return "measured"
        alone = None if report is None else _recommended(report, table)
        return "recommended" if used == alone else None


def is_stale(run: TuneRunSummary, now: datetime | None = None) -> bool:
    """True if a run that has not ended has been silent for longer than it said."""
    return run.status == "running" and age_s(run, now) > run.next_within_s


def age_s(run: TuneRunSummary, now: datetime | None = None) -> float:
    """Seconds since the last report."""
    now = datetime.now(UTC) if now is None else now
    return max(0.0, (now - run.updated).total_seconds())


def _recommended(report: TuningReport, table: MeasuredTable) -> MeasuredTable | None:
    """The table with the recommended setting alone; ``None`` if there is none."""
    row = report.recommended_setting
    if report.status != "recommended" or row is None:
        return None
    # All revisions stay: a strategy may use other policies, and does not say which.
    return table.model_copy(
        update={"rows": [row], "policies": {**report.policies, **table.policies}}
    )


def _report(found: StoredTuneRun) -> TuningReport | None:
    try:
        return TuningReport.model_validate(found.report)
    except ValidationError:
        logger.warning("tuning run %s was kept by another version", found.summary.id)
        return None


def _table(found: StoredTuneRun) -> MeasuredTable | None:
    if found.table is None:
        return None
    try:
        return MeasuredTable.model_validate(found.table)
    except ValidationError:
        logger.warning("the table of tuning run %s cannot be used", found.summary.id)
        return None


def _unknown(run_id: str) -> NotFoundError:
    return NotFoundError(
        f"this server has no tuning run {run_id}; GET /tune/runs lists those it has"
    )
