"""``GET /decision``: the figures on which "N times inference or one fine-tune?" is decided."""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import APIRouter

from service.evaluation.answer_revision import is_current
from service.evaluation.decision import decision_of
from service.evaluation.frontier import served_models
from service.loadtest.analysis.decision_data import Decision
from service.routes.dependencies import RuntimeDep, StoreDep
from service.schemas import errors

router = APIRouter(tags=["server"])

_NEWEST_RUNS = 10


@router.get("/decision", responses=errors(503))
async def get_decision(runtime: RuntimeDep, store: StoreDep) -> Decision:
    """The newest load test of the models served that compares a tuned checkpoint with best-of-N.

    The newest ten load tests are read. It comes with its throughput round by round, so that other prices,
    training times, volumes and latency limits can be put in. Without one, `missing` says what to do.
    """
    served = served_models(runtime)
    if store.where is None:
        return decision_of(served, [], [], kept=False)
    from service.store import human_win_rates, newest_results  # imports SQLAlchemy

    runs = await store.use(lambda opened: newest_results(opened, _NEWEST_RUNS))
    lines = await store.use(human_win_rates)
    people = [line for line in lines if is_current(runtime, line)]
    return await asyncio.to_thread(
        partial(decision_of, served, runs, people, kept=True, most=_NEWEST_RUNS)
    )
