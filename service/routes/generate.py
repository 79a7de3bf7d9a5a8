"""``POST /generate``: one answer per prompt in the mode asked for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from service.deps import RequestId, RuntimeDep
from service.disconnect import run_while_connected
from service.errors import tell
from service.generate_stream import native_messages
from service.generation import generate, make_plan
from service.schemas import BatchAnswer, ErrorResponse, GenerateAnswer, GenerateRequest
from service.sse import EventStream, event, open_stream

router = APIRouter(tags=["generation"])

ERRORS: dict[int | str, dict[str, object]] = {
    422: {"model": ErrorResponse, "description": "wrong input; names the field and the limit"},
    429: {"model": ErrorResponse, "description": "too much waits already; see Retry-After"},
    503: {"model": ErrorResponse, "description": "models loading or an engine dead"},
    504: {"model": ErrorResponse, "description": "no answer within the time limit"},
}


class GenerateQuery(BaseModel):
    """Query parameters; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")

    mode: str | None = Field(
        None, description="see GET /modes: `ref`, `bon`, `vbon`, ...; default: the server's"
    )
    policy: str | None = Field(
        None, description="policy that a strategy draws from, `vbon` say; default: `ref`"
    )


@router.post("/generate", responses=ERRORS, response_model=GenerateAnswer | BatchAnswer)
async def post_generate(
    body: GenerateRequest,
    query: Annotated[GenerateQuery, Query()],
    request: Request,
    runtime: RuntimeDep,
    request_id: RequestId,
) -> GenerateAnswer | BatchAnswer | EventStream:
    """Answer a prompt, several prompts, or a chat.

    `mode=bon` draws `n` candidates from the reference policy and returns the one with the highest
    reward; `mode=vbon` draws one sample of the distilled checkpoint; `mode=ref` one of the reference.
    Other modes choose by other rules and take settings of their own; `policy=vbon` lets them draw from
    another policy than the reference.

    With `stream`, server-sent events: `token` from modes of one sample, `candidate` and `progress` from
    the others, then one `answer` or one `error`, whose data are the JSON of a request without it.
    """
    plan = make_plan(runtime, query.mode, body, request_id, query.policy)
    if body.stream:
        return await open_stream(
            request, native_messages(plan), lambda error: event("error", tell(request, error))
        )
    return await run_while_connected(request, generate(plan))
