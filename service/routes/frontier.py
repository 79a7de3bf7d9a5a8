"""``GET /frontier``: KL, win rate and reward of what is served."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from service.evaluation.frontier import frontier_of
from service.routes.dependencies import RuntimeDep, StoreDep
from service.schemas.frontier import Frontier

router = APIRouter(tags=["server"])

_NEWEST_RUNS = 10


@router.get("/frontier")
async def get_frontier(runtime: RuntimeDep, store: StoreDep) -> Frontier:
    """Each policy's card, best-of-n measured and in theory, and modes as load tests measured them.

    What nobody has measured is null, and the notes say which command does.
    """
    runs: list[dict[str, object]] = []
    if store.where is not None:
        from service.store import newest_results

        runs = await store.use(lambda opened: newest_results(opened, _NEWEST_RUNS))
    return await asyncio.to_thread(frontier_of, runtime, runs)
