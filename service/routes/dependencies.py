"""The objects that routes receive as parameters, each declared once."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Header, Request

from service.auto.live import LiveAuto
from service.auto.tune_runs import TuneRuns
from service.context.caller import current_caller
from service.distil.collector import Collector
from service.distil.live_rollout import LiveRollout
from service.evaluation.preference_pairs import PendingPairs
from service.hosted_loadtests.report_links import ReportLinks
from service.hosted_loadtests.results import LoadTestResults
from service.hosted_loadtests.runs import LoadTestRuns
from service.http.same_origin import require_same_origin
from service.routes.request_state import get_runtime
from service.runtime.reload import Reloads
from service.runtime.runtime import Runtime
from service.schemas.budget import GENERATIONS
from service.store.async_store import AsyncStore
from vbon.errors import ForbiddenError, NotFoundError


# FastAPI runs plain functions in a thread, so these are coroutines. Because it also resolves every
# dependency again for each request, the busiest routes call the functions in request_state.py instead.
async def _runtime(request: Request) -> Runtime:
    return get_runtime(request)


async def _store(request: Request) -> AsyncStore:
    return cast(AsyncStore, request.app.state.store)


async def _pending_pairs(request: Request) -> PendingPairs:
    return cast(PendingPairs, request.app.state.pending_pairs)


async def _load_test_runs(request: Request) -> LoadTestRuns:
    return cast(LoadTestRuns, request.app.state.load_test_runs)


async def _load_test_results(request: Request) -> LoadTestResults:
    state = request.app.state
    return LoadTestResults(state.load_test_runs, state.store)


async def _report_links(request: Request) -> ReportLinks:
    return cast(ReportLinks, request.app.state.report_links)


async def _reloader(request: Request) -> Reloads:
    reloader = request.app.state.reloader
    if reloader is None:
        raise NotFoundError(
            "this server cannot reload models; if it is a front end of a fleet, deploy it again with the new "
            "paths, and if it was built in code, start it with `vbon serve`"
        )
    return cast(Reloads, reloader)


async def _collector(request: Request) -> Collector:
    collector = request.app.state.collector
    if collector is None:
        raise NotFoundError(
            "this server collects no answers; start it with --distil.dir DIR to collect them"
        )
    return cast(Collector, collector)


async def _rollout(request: Request) -> LiveRollout:
    rollout = request.app.state.rollout
    if rollout is None:
        raise NotFoundError(
            "this server rolls out no checkpoints; start it with --distil.policy live to serve those that "
            "are submitted"
        )
    return cast(LiveRollout, rollout)


async def _auto(request: Request) -> LiveAuto:
    return cast(LiveAuto, request.app.state.auto)


async def _tune_runs(request: Request) -> TuneRuns:
    return cast(TuneRuns, request.app.state.tune_runs)


async def _require_admin(request: Request) -> None:
    """Reject a key without the admin role, on a server that has keys.

    Raises:
        ForbiddenError: the key does not have it.
    """
    caller = current_caller.get()
    if get_runtime(request).settings.auth.keys_file is not None and not caller.is_admin:
        raise ForbiddenError(
            f"key {caller.name!r} does not have the admin role; create one with `vbon keys add NAME --role "
            "admin`"
        )


RuntimeDep = Annotated[Runtime, Depends(_runtime)]
StoreDep = Annotated[AsyncStore, Depends(_store)]
RolloutDep = Annotated[LiveRollout, Depends(_rollout)]
AutoDep = Annotated[LiveAuto, Depends(_auto)]
TuneRunsDep = Annotated[TuneRuns, Depends(_tune_runs)]
CollectorDep = Annotated[Collector, Depends(_collector)]
ReloaderDep = Annotated[Reloads, Depends(_reloader)]
PendingPairsDep = Annotated[PendingPairs, Depends(_pending_pairs)]
LoadTestRunsDep = Annotated[LoadTestRuns, Depends(_load_test_runs)]
LoadTestResultsDep = Annotated[LoadTestResults, Depends(_load_test_results)]
ReportLinksDep = Annotated[ReportLinks, Depends(_report_links)]

# Rejects requests that a page of another site sends.
SAME_ORIGIN_ONLY = [Depends(require_same_origin)]
# Rejects keys without the admin role, on servers that have keys.
ADMINS_ONLY = [Depends(_require_admin)]

# A header that any route which generates takes.
Generations = Annotated[int | None, Header(alias="X-ITS-Budget"), GENERATIONS]
