"""``/loadtests``: load tests of this server, running and stored."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from service.context.caller import current_caller
from service.hosted_loadtests.report_links import VALID_S
from service.hosted_loadtests.requests import own_url, planned_seconds, settings_of, token_of
from service.hosted_loadtests.results import run_status
from service.hosted_loadtests.runs import ROOM_S, not_here
from service.hosted_loadtests.server_state import server_state
from service.http.security_headers import REPORT_POLICY
from service.loadtest.analysis.comparison import Comparison
from service.loadtest.schema import LoadTestResult
from service.routes.dependencies import (
    ADMINS_ONLY,
    SAME_ORIGIN_ONLY,
    LoadTestResultsDep,
    LoadTestRunsDep,
    ReportLinksDep,
    RuntimeDep,
    StoreDep,
)
from service.schemas.failure import WITH_BODY, errors
from service.schemas.loadtests import (
    KeptRun,
    LoadTestRequest,
    LoadTests,
    LoadTestStatus,
    ReportLink,
    RunLabels,
)
from service.schemas.prompts import to_prompt

router = APIRouter(tags=["load tests"])

_ABSENT = errors(404, 422, 503)
_REFUSED = errors(403, 404, 429, 503)
_HTML: dict[int | str, dict[str, object]] = {200: {"content": {"text/html": {}}}}
_ID = "^[0-9a-f]{12}$"
RunId = Annotated[str, Path(pattern=_ID)]
OtherId = Annotated[str, Query(pattern=_ID)]


@router.post(
    "/loadtests", status_code=202, responses=WITH_BODY | _REFUSED, dependencies=SAME_ORIGIN_ONLY
)
async def post_load_test(
    body: LoadTestRequest, request: Request, runtime: RuntimeDep, runs: LoadTestRunsDep
) -> LoadTestStatus:
    """Start a load test of this server. One runs at a time, within the server's limits.

    It runs in a separate process, sends the key of this request, and is served like any other client.
    """
    settings, planned_s = settings_of(runtime, body), planned_seconds(runtime, body)
    run = await runs.start(
        {"url": own_url(request), **settings},
        None if body.prompts is None else [to_prompt(item) for item in body.prompts],
        caller=current_caller.get(),
        token=token_of(request, runtime),
        tags=body.tags,
        planned_s=planned_s,
        limit_s=runtime.settings.limits.loadtest_max_s + ROOM_S,
    )
    return await run_status(run)


@router.get("/loadtests", responses=errors(503))
async def get_load_tests(
    runtime: RuntimeDep,
    runs: LoadTestRunsDep,
    results: LoadTestResultsDep,
    store: StoreDep,
    tag: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> LoadTests:
    """The load test that is running or ran last, and the stored ones, newest first."""
    limits = runtime.settings.limits
    return LoadTests(
        current=None if runs.current is None else await run_status(runs.current),
        kept=store.where is not None,
        runs=await results.stored(tag, limit),
        max_s=limits.loadtest_max_s,
        max_in_flight=limits.loadtest_max_in_flight,
    )


@router.get("/loadtests/{run_id}", responses=_ABSENT)
async def get_load_test(
    run_id: RunId, runtime: RuntimeDep, results: LoadTestResultsDep
) -> LoadTestStatus:
    """The state and progress of one load test; while it runs, also the server's queue and engines."""
    status = await results.status(run_id)
    if status.state == "running":
        status.server = server_state(runtime)
    return status


@router.patch(
    "/loadtests/{run_id}",
    responses=WITH_BODY | _ABSENT | errors(403),
    dependencies=SAME_ORIGIN_ONLY + ADMINS_ONLY,
)
async def patch_load_test(run_id: RunId, body: RunLabels, results: LoadTestResultsDep) -> KeptRun:
    """Give a stored load test a name and tags. Needs an admin's key where the server has keys."""
    return await results.label(run_id, body.name, body.tags)


@router.delete(
    "/loadtests/{run_id}/result",
    responses=_ABSENT | errors(403, 409),
    dependencies=SAME_ORIGIN_ONLY + ADMINS_ONLY,
    status_code=204,
)
async def delete_result(run_id: RunId, results: LoadTestResultsDep) -> None:
    """Delete a load test that has ended. Needs an admin's key where the server has keys."""
    await results.delete(run_id)


@router.get("/loadtests/{run_id}/result", responses=_ABSENT, response_model=LoadTestResult)
async def get_result(run_id: RunId, results: LoadTestResultsDep) -> Response:
    """The result, as in the command line's `result.json`; partial while the load test is running."""
    return Response(await results.result_text(run_id), media_type="application/json")


@router.get("/loadtests/{run_id}/comparison", responses=_ABSENT)
async def get_comparison(
    run_id: RunId, against: OtherId, results: LoadTestResultsDep
) -> Comparison:
    """The differences between this load test (B) and another one (A), tested for significance."""
    return await results.comparison(run_id, against)


@router.get("/loadtests/{run_id}/report", responses=_ABSENT | _HTML, response_class=Response)
async def get_report(run_id: RunId, results: LoadTestResultsDep) -> Response:
    """The report: one HTML page that loads nothing else, served in a sandbox."""
    return _html(await results.report(run_id))


@router.post(
    "/loadtests/{run_id}/report-link",
    responses=_ABSENT | _REFUSED,
    dependencies=SAME_ORIGIN_ONLY,
)
async def post_report_link(
    run_id: RunId, results: LoadTestResultsDep, links: ReportLinksDep
) -> ReportLink:
    """Create a link at which a browser can open the report without a key, for some minutes."""
    await results.result(run_id)
    owner = current_caller.get().name
    return ReportLink(url=f"/page/reports/{links.make(run_id, owner)}", valid_s=VALID_S)


@router.get("/page/reports/{secret}", include_in_schema=False)
async def get_linked_report(
    secret: str, results: LoadTestResultsDep, links: ReportLinksDep
) -> Response:
    """The report that a link leads to."""
    return _html(await results.report(links.run_of(secret)))


@router.delete(
    "/loadtests/{run_id}",
    responses=_ABSENT | _REFUSED,
    dependencies=SAME_ORIGIN_ONLY,
    status_code=202,
)
async def delete_load_test(run_id: RunId, runs: LoadTestRunsDep) -> LoadTestStatus:
    """Stop a running load test; its results so far are kept. Does nothing if it has ended."""
    run = runs.find(run_id)
    if run is None:
        raise not_here(run_id)
    runs.stop(run, current_caller.get())
    return await run_status(run)


def _html(page: bytes) -> Response:
    headers = {"content-security-policy": REPORT_POLICY}
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)
