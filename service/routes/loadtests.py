"""``/loadtests``: load tests of this server, and those that are kept."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import ValidationError

from service.context.caller import current_caller
from service.hosted_loadtests.report_links import VALID_S
from service.hosted_loadtests.requests import own_url, planned_seconds, settings_of, token_of
from service.hosted_loadtests.runs import ROOM_S, LoadTestRuns, Run, not_here
from service.http.same_origin import require_same_origin
from service.http.security_headers import REPORT_POLICY
from service.loadtest.analysis.compare import Comparison, compare_runs
from service.loadtest.schema import LoadTestResult
from service.routes.dependencies import LoadTestRunsDep, ReportLinksDep, RuntimeDep, StoreDep
from service.schemas.failure import WITH_BODY, errors
from service.schemas.loadtests import (
    KeptRun,
    LoadTestRequest,
    LoadTests,
    LoadTestStatus,
    ReportLink,
)
from service.store.async_store import AsyncStore
from vbon.errors import NotFoundError

router = APIRouter(tags=["load tests"])

_OURS_ONLY = [Depends(require_same_origin)]
_ABSENT = errors(404, 422)
_REFUSED = errors(403, 404, 429, 503)
_HTML: dict[int | str, dict[str, object]] = {200: {"content": {"text/html": {}}}}
_ID = "^[0-9a-f]{12}$"
RunId = Annotated[str, Path(pattern=_ID)]
OtherId = Annotated[str, Query(pattern=_ID)]


@router.post("/loadtests", status_code=202, responses=WITH_BODY | _REFUSED, dependencies=_OURS_ONLY)
async def post_load_test(
    body: LoadTestRequest, request: Request, runtime: RuntimeDep, runs: LoadTestRunsDep
) -> LoadTestStatus:
    """Start a load test of this server, one at a time, within its limits.

    It runs in a process of its own, with the key of this request, and is answered like anyone else.
    """
    settings, planned_s = settings_of(runtime, body), planned_seconds(runtime, body)
    run = await runs.start(
        {"url": own_url(request), **settings},
        body.prompts,
        caller=current_caller.get(),
        token=token_of(request, runtime),
        tags=body.tags,
        planned_s=planned_s,
        limit_s=runtime.settings.limits.loadtest_max_s + ROOM_S,
    )
    return await _status(run)


@router.get("/loadtests")
async def get_load_tests(
    runtime: RuntimeDep,
    runs: LoadTestRunsDep,
    store: StoreDep,
    tag: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> LoadTests:
    """The load test that runs or ran last, and the store's, newest first."""
    limits = runtime.settings.limits
    return LoadTests(
        current=None if runs.current is None else await _status(runs.current),
        kept=store.where is not None,
        runs=[] if store.where is None else await _kept(store, tag, limit),
        max_s=limits.loadtest_max_s,
        max_in_flight=limits.loadtest_max_in_flight,
    )


@router.get("/loadtests/{run_id}", responses=_ABSENT)
async def get_load_test(run_id: RunId, runs: LoadTestRunsDep, store: StoreDep) -> LoadTestStatus:
    """Where one stands."""
    run = runs.find(run_id)
    if run is not None:
        return await _status(run)
    result = await asyncio.to_thread(_read, run_id, await _result(run_id, runs, store))
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


@router.get("/loadtests/{run_id}/result", responses=_ABSENT, response_model=LoadTestResult)
async def get_result(run_id: RunId, runs: LoadTestRunsDep, store: StoreDep) -> Response:
    """What it has measured, so far if it is still running; as `result.json` of the command line."""
    return Response(await _result(run_id, runs, store), media_type="application/json")


@router.get("/loadtests/{run_id}/comparison", responses=_ABSENT)
async def get_comparison(
    run_id: RunId, against: OtherId, runs: LoadTestRunsDep, store: StoreDep
) -> Comparison:
    """Whether this run (B) differs from another one (A) by more than their own rounds and prompts do."""
    b, a = [
        await asyncio.to_thread(_read, one, await _result(one, runs, store))
        for one in (run_id, against)
    ]
    return await asyncio.to_thread(compare_runs, a, b)


@router.get("/loadtests/{run_id}/report", responses=_ABSENT | _HTML, response_class=Response)
async def get_report(run_id: RunId, runs: LoadTestRunsDep, store: StoreDep) -> Response:
    """Its report: one HTML page that loads nothing, in a sandbox."""
    return await _report(run_id, runs, store)


@router.post(
    "/loadtests/{run_id}/report-link", responses=_ABSENT | _REFUSED, dependencies=_OURS_ONLY
)
async def post_report_link(
    run_id: RunId, runs: LoadTestRunsDep, store: StoreDep, links: ReportLinksDep
) -> ReportLink:
    """A link under which a browser may open the report for some minutes without a key."""
    await asyncio.to_thread(_read, run_id, await _result(run_id, runs, store))
    return ReportLink(url=f"/page/reports/{links.make(run_id)}", valid_s=VALID_S)


@router.get("/page/reports/{secret}", include_in_schema=False)
async def get_linked_report(
    secret: str, runs: LoadTestRunsDep, store: StoreDep, links: ReportLinksDep
) -> Response:
    """The report that a link stands for."""
    return await _report(links.run_of(secret), runs, store)


@router.delete(
    "/loadtests/{run_id}", responses=_ABSENT | _REFUSED, dependencies=_OURS_ONLY, status_code=202
)
async def delete_load_test(run_id: RunId, runs: LoadTestRunsDep) -> LoadTestStatus:
    """Stop one that runs; what it has measured is kept and reported. One that has ended stays as it is."""
    run = runs.find(run_id)
    if run is None:
        raise not_here(run_id)
    runs.stop(run, current_caller.get())
    return await _status(run)


async def _status(run: Run) -> LoadTestStatus:
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
        result=await asyncio.to_thread((run.directory / "result.json").is_file),
    )


async def _kept(store: AsyncStore, tag: str | None, limit: int) -> list[KeptRun]:
    from service.store import list_runs

    found = await store.use(lambda opened: list_runs(opened, tag=tag, limit=limit))
    return [
        KeptRun(
            id=run.id, created=run.created, url=run.url, headline=run.headline, tags=list(run.tags)
        )
        for run in found
    ]


async def _result(run_id: str, runs: LoadTestRuns, store: AsyncStore) -> str:
    """JSON text of a run of this process, or of the store.

    Raises:
        NotFoundError: neither has it.
    """
    run = runs.find(run_id)
    if run is not None:
        text = await asyncio.to_thread(run.result_text)
        if text is not None:
            return text
    if store.where is not None:
        from service.store import get_run

        found = await store.use(lambda opened: get_run(opened, run_id))
        if found is not None:
            return json.dumps(found)
    raise not_here(run_id)


def _read(run_id: str, text: str) -> LoadTestResult:
    """A result as this program understands it.

    Raises:
        NotFoundError: it is of another version, as the store's may be.
    """
    try:
        return LoadTestResult.model_validate_json(text)
    except ValidationError as error:
        raise NotFoundError(
            f"load test {run_id!r} was kept by another version of this program, and this one cannot read "
            f"its result; GET /loadtests/{run_id}/result gives it as it is"
        ) from error


async def _report(run_id: str, runs: LoadTestRuns, store: AsyncStore) -> Response:
    run = runs.find(run_id)
    if run is not None and run.active:
        raise not_here(run_id)
    text = await _result(run_id, runs, store)
    await asyncio.to_thread(_read, run_id, text)
    page = await runs.report(run_id, text)
    headers = {"content-security-policy": REPORT_POLICY}
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)
