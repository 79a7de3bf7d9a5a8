"""``/tune/runs``: runs of ``vbon tune`` that report to this server; admins may change them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request

from service.auto.tune_runs import TuneRun, age_s, is_stale
from service.routes.dependencies import ADMINS_ONLY, SAME_ORIGIN_ONLY, TuneRunsDep
from service.schemas.failure import WITH_BODY, errors
from service.schemas.tune import ApplyRequest, TuneRunOut, TuneRunsOut, TuneRunWhole
from service.store import TuneRunSummary
from vbon.measured.table import MeasuredTable
from vbon.measured.tuning_run import TuningReport

router = APIRouter(prefix="/tune", tags=["tune"])

_CHANGES = [*SAME_ORIGIN_ONLY, *ADMINS_ONLY]
_ABSENT = errors(404, 422, 503)
_REPORTED = WITH_BODY | errors(404, 503)
RunId = Annotated[str, Path(pattern="^[0-9a-f]{12}$")]


@router.get("/runs", responses=errors(404, 503))
async def get_runs(runs: TuneRunsDep) -> TuneRunsOut:
    """The runs that are kept, the one that started last first."""
    return TuneRunsOut(runs=[TuneRunOut(**_fields(one)) for one in await runs.summaries()])


@router.get("/runs/{run_id}", responses=_ABSENT)
async def get_run(run_id: RunId, runs: TuneRunsDep, request: Request) -> TuneRunWhole:
    """A run with its trials and what it recommends."""
    return _whole(await runs.get(run_id), request)


@router.put(
    "/runs/{run_id}",
    responses=_REPORTED | errors(409),
    status_code=204,
    dependencies=_CHANGES,
)
async def put_run(run_id: RunId, body: TuningReport, runs: TuneRunsDep) -> None:
    """Report a run, in the place of its last report. Of more than 50 runs, the oldest are removed.

    409 if the run has reported its end since, or a later start.
    """
    await runs.report(run_id, body)


@router.put("/runs/{run_id}/table", responses=_REPORTED, status_code=204, dependencies=_CHANGES)
async def put_run_table(run_id: RunId, body: MeasuredTable, runs: TuneRunsDep) -> None:
    """Keep all settings that a run measured; mode auto has them once they are applied."""
    await runs.keep_table(run_id, body)


@router.post("/runs/{run_id}/apply", responses=_REPORTED, dependencies=_CHANGES)
async def post_apply(
    run_id: RunId, body: ApplyRequest, runs: TuneRunsDep, request: Request
) -> TuneRunWhole:
    """Let mode auto choose from this run's settings, from now on and after a restart.

    Settings that were measured with other models or on other hardware are refused, and the table before
    stays in use.
    """
    return _whole(await runs.apply(run_id, body.settings), request)


@router.delete("/runs/{run_id}", responses=_ABSENT, status_code=204, dependencies=_CHANGES)
async def delete_run(run_id: RunId, runs: TuneRunsDep) -> None:
    """Remove a run; what was applied of it stays in use."""
    await runs.delete(run_id)


def _fields(one: TuneRunSummary) -> dict[str, object]:
    return {
        "id": one.id,
        "started": one.started,
        "updated": one.updated,
        "age_s": age_s(one),
        "stale": is_stale(one),
        "status": one.status,
        "question": one.question,
        "trials": one.trials,
    }


def _whole(found: TuneRun, request: Request) -> TuneRunWhole:
    return TuneRunWhole(
        **_fields(found.summary),
        report=found.report,
        has_table=found.has_table,
        applied=found.applied,
        rolls_out=request.app.state.rollout is not None,
    )
