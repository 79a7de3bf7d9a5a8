"""Look-up of load tests: those of this process first, then the stored ones."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from pydantic import ValidationError

from service.hosted_loadtests.runs import LoadTestRuns, Run, not_here
from service.loadtest.analysis.compare import compare_runs
from service.loadtest.analysis.comparison import Comparison
from service.loadtest.schema import LoadTestResult
from service.schemas.loadtests import KeptRun, LoadTestStatus
from service.store.async_store import AsyncStore
from vbon.errors import NotFoundError

if TYPE_CHECKING:
    from service.store import RunSummary


class LoadTestResults:
    """Finds the states and results of load tests by their ids."""

    def __init__(self, runs: LoadTestRuns, store: AsyncStore) -> None:
        self._runs, self._store = runs, store

    async def status(self, run_id: str) -> LoadTestStatus:
        """The state of one load test.

        Raises:
            NotFoundError: the id is unknown, or another version of this program stored the result.
        """
        run = self._runs.find(run_id)
        if run is not None:
            return await run_status(run)
        result = await self.result(run_id)
        return LoadTestStatus(
            id=run_id,
            state="finished" if result.complete else "stopped",
            started=result.created,
            tags=[],
            planned_s=None,
            blocks_planned=result.blocks_planned,
            blocks_done=result.blocks_done,
            now=None,
            now_s=None,
            result=True,
        )

    async def stored(self, tag: str | None, limit: int) -> list[KeptRun]:
        """The newest stored load tests, at most ``limit``; empty if this server stores none."""
        if self._store.where is None:
            return []
        from service.store import list_runs  # imports SQLAlchemy

        found = await self._store.use(lambda opened: list_runs(opened, tag=tag, limit=limit))
        return [_kept(run) for run in found]

    async def label(self, run_id: str, name: str | None, tags: list[str] | None) -> KeptRun:
        """Give a stored load test a name and tags.

        Raises:
            NotFoundError: the store does not have it.
        """
        if self._store.where is not None:
            from service.store import label_run  # imports SQLAlchemy

            found = await self._store.use(
                lambda opened: label_run(opened, run_id, name=name, tags=tags)
            )
            if found is not None:
                return _kept(found)
        raise not_here(run_id)

    async def delete(self, run_id: str) -> None:
        """Delete a load test, its files and what the store has of it.

        Raises:
            NotFoundError: neither this process nor the store has it.
            BusyError: it is still running.
        """
        known = self._runs.find(run_id) is not None
        self._runs.forget(run_id)
        stored = False
        if self._store.where is not None:
            from service.store import delete_run  # imports SQLAlchemy

            stored = await self._store.use(lambda opened: delete_run(opened, run_id))
        if not known and not stored:
            raise not_here(run_id)

    async def result_text(self, run_id: str) -> str:
        """The result as JSON text, so far if the load test is still running.

        Raises:
            NotFoundError: neither this process nor the store has it.
        """
        run = self._runs.find(run_id)
        if run is not None:
            text = await asyncio.to_thread(run.result_text)
            if text is not None:
                return text
        if self._store.where is not None:
            from service.store import get_run  # imports SQLAlchemy

            found = await self._store.use(lambda opened: get_run(opened, run_id))
            if found is not None:
                return json.dumps(found)
        raise not_here(run_id)

    async def result(self, run_id: str) -> LoadTestResult:
        """The parsed result.

        Raises:
            NotFoundError: as :meth:`result_text`, or another version of this program stored it.
        """
        return await asyncio.to_thread(_parse, run_id, await self.result_text(run_id))

    async def comparison(self, run_id: str, against: str) -> Comparison:
        """The differences between the load test ``run_id`` (B) and the load test ``against`` (A).

        Raises:
            NotFoundError: as :meth:`result`.
        """
        b, a = await self.result(run_id), await self.result(against)
        return await asyncio.to_thread(compare_runs, a, b)

    async def report(self, run_id: str) -> bytes:
        """The HTML report of a load test that has ended.

        Raises:
            NotFoundError: as :meth:`result`, or the load test is still running.
        """
        run = self._runs.find(run_id)
        if run is not None and run.active:
            raise not_here(run_id)
        text = await self.result_text(run_id)
        await asyncio.to_thread(_parse, run_id, text)
        return await self._runs.report(run_id, text)


def _kept(run: RunSummary) -> KeptRun:
    return KeptRun(
        id=run.id,
        created=run.created,
        url=run.url,
        headline=run.headline,
        tags=list(run.tags),
        name=run.name,
        models=run.models,
    )


async def run_status(run: Run) -> LoadTestStatus:
    """The state of a load test of this process."""
    progress = await asyncio.to_thread(run.progress)
    return LoadTestStatus(
        id=run.id,
        state=run.state,
        message=run.message,
        started=run.started,
        tags=list(run.tags),
        planned_s=run.planned_s,
        blocks_planned=progress.get("blocks_planned"),
        blocks_done=progress.get("blocks_done", 0),
        now=progress.get("now") if run.state == "running" else None,
        now_s=progress.get("now_s") if run.state == "running" else None,
        left_s=progress.get("left_s") if run.state == "running" else None,
        block=progress.get("block") if run.state == "running" else None,
        result=await asyncio.to_thread((run.directory / "result.json").is_file),
    )


def _parse(run_id: str, text: str) -> LoadTestResult:
    try:
        return LoadTestResult.model_validate_json(text)
    except ValidationError as error:
        raise NotFoundError(
            f"load test {run_id!r} was stored by another version of this program, and this version cannot "
            f"read its result; GET /loadtests/{run_id}/result returns it unchanged"
        ) from error
