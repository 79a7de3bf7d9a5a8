"""``POST /compare``: several modes on the same prompts."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.evaluation.compare import compare
from service.http.disconnect import run_while_connected
from service.routes.dependencies import RuntimeDep
from service.routes.request_state import get_request_id
from service.schemas import AT_WORK, CompareRequest, CompareResponse

router = APIRouter(tags=["generation"])


@router.post("/compare", responses=AT_WORK)
async def post_compare(
    body: CompareRequest, request: Request, runtime: RuntimeDep
) -> CompareResponse:
    """Answer prompts in several modes; report each mode's reward, win rate, latency and throughput."""
    return await run_while_connected(request, compare(runtime, body, get_request_id(request)))
