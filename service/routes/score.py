"""``POST /v1/score``: rewards of given texts."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request

from service.generation.references import scorer_ref
from service.http.disconnect import run_while_connected
from service.routes.dependencies import RuntimeDep
from service.routes.request_state import get_request_id
from service.runtime.score_texts import score_texts
from service.schemas.failure import AT_WORK
from service.schemas.score import ScoreElement, ScoreRequest, ScoreResponse, ScoreTimings

router = APIRouter(prefix="/v1", tags=["generation"])


@router.post("/score", responses=AT_WORK)
async def post_score(body: ScoreRequest, request: Request, runtime: RuntimeDep) -> ScoreResponse:
    """Score completions of one prompt, of one chat, or of a prompt each, with the reward model.

    The texts join the batches of candidates that are being scored. Rewards are raw numbers, higher is
    better; a text that the model cannot score has null. The names `text_1` and `text_2`, or `queries` and
    `documents`, and the answer's `data` are those of vLLM's score API.
    """
    scored = await run_while_connected(
        request, score_texts(runtime, body.model, body.pairs(), body.timeout_s, body.field)
    )
    reference = scorer_ref(body.model, scored.scorer)
    assert reference is not None  # there is a scorer
    return ScoreResponse(
        id=f"score-{get_request_id(request)}",
        created=int(time.time()),
        model=body.model,
        rewards=scored.rewards,
        data=[
            ScoreElement(index=index, score=reward) for index, reward in enumerate(scored.rewards)
        ],
        unscored=scored.rewards.count(None),
        reward_model=reference,
        timings_ms=ScoreTimings(
            queue=round(scored.queue_ms, 3),
            scoring=round(scored.total_ms - scored.queue_ms, 3),
            total=round(scored.total_ms, 3),
        ),
    )
