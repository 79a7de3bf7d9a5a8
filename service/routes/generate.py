"""``POST /generate``: one answer per prompt in the mode asked for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.generation.native_stream import native_messages
from service.generation.plan import generate, make_plan
from service.http.disconnect import run_while_connected
from service.http.responses import json_of
from service.http.sse import event, open_stream
from service.routes.errors import tell
from service.routes.request_state import get_request_id, get_runtime
from service.schemas import AT_WORK, BatchAnswer, GenerateAnswer, GenerateRequest
from vbon.errors import InvalidInputError

router = APIRouter(tags=["generation"])

# With `stream`.
STREAMED: dict[int | str, dict[str, object]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


# Not a pydantic model of the query, which could refuse unknown names itself: FastAPI looks into its
# types anew for each request, which costs as much as all the rest of the routing.
ModeName = Annotated[
    str | None,
    Query(description="see GET /modes: `ref`, `bon`, `vbon`, ...; default: the server's"),
]
PolicyName = Annotated[
    str | None,
    Query(description="policy that a strategy draws from, `vbon` say; default: `ref`"),
]


@router.post("/generate", responses=AT_WORK | STREAMED, response_model=GenerateAnswer | BatchAnswer)
async def post_generate(
    body: GenerateRequest, request: Request, mode: ModeName = None, policy: PolicyName = None
) -> Response:
    """Answer a prompt, several prompts, or a chat.

    `mode=bon` draws `n` candidates from the reference policy and returns the one with the highest
    reward; `mode=vbon` draws one sample of the distilled checkpoint; `mode=ref` one of the reference.
    Other modes choose by other rules and take settings of their own; `policy=vbon` lets them draw from
    another policy than the reference.

    With `stream`, server-sent events: `token` from modes of one sample, `candidate` and `progress` from
    the others, then one `answer` or one `error`, whose data are the JSON of a request without it.
    """
    for name in request.query_params:
        if name not in {"mode", "policy"}:
            raise InvalidInputError(
                f"no query parameter {name!r}; there are mode and policy", field=name
            )
    plan = make_plan(get_runtime(request), mode, body, get_request_id(request), policy)
    if body.stream:
        return await open_stream(
            request, native_messages(plan), lambda error: event("error", tell(request, error))
        )
    return json_of(await run_while_connected(request, generate(plan)))
