"""``GET /evaluation/prompts``: the prompts of the evaluation that this server shows."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from service.evaluation.evaluated_prompts import evaluated_prompts
from service.routes.dependencies import RuntimeDep
from service.schemas.failure import errors
from service.schemas.prompts import EvaluatedPrompts, to_item

router = APIRouter(tags=["server"])


@router.get("/evaluation/prompts", responses=errors(404))
async def get_evaluated_prompts(runtime: RuntimeDep) -> EvaluatedPrompts:
    """The prompts of the evaluation given with --evaluation, which load tests use by default."""
    found = await asyncio.to_thread(evaluated_prompts, runtime.settings.evaluation)
    return EvaluatedPrompts(prompts=[to_item(prompt) for prompt in found])
