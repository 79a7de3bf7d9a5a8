"""``GET /frontier``: KL, win rate and reward of the models and modes served."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from service.evaluation.frontier import frontier_of
from service.routes.dependencies import RuntimeDep, StoreDep
from service.schemas import errors
from service.schemas.frontier import Frontier

router = APIRouter(tags=["server"])

_NEWEST_RUNS = 10


@router.get("/frontier", responses=errors(503))
async def get_frontier(runtime: RuntimeDep, store: StoreDep) -> Frontier:
    """Each policy's figures, best-of-n as measured and in theory, and modes as measured by load tests.

    Figures that have not been measured are null, and the notes give the command that measures them.
    """
    runs: list[dict[str, object]] = []
    if store.where is not None:
        from service.store import newest_results  # imports SQLAlchemy

        runs = await store.use(lambda opened: newest_results(opened, _NEWEST_RUNS))
    return await asyncio.to_thread(frontier_of, runtime, runs)
