"""``POST /generate``: one answer per prompt, in the mode that the query names."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.generation.gold import check_gold
from service.generation.native_response import generate
from service.generation.native_stream import native_messages
from service.generation.plan import make_plan
from service.http.disconnect import run_while_connected
from service.http.responses import json_of
from service.http.sse import event, open_stream
from service.routes.dependencies import Generations
from service.routes.errors import stream_error
from service.routes.request_state import get_request_id, get_runtime
from service.schemas import AT_WORK, EVENT_STREAM, BatchAnswer, GenerateAnswer, GenerateRequest
from vbon.errors import InvalidInputError

router = APIRouter(tags=["generation"])

# A pydantic model of the query could reject unknown names itself, but FastAPI inspects its types again for
# each request, which takes as long as the rest of the routing.
ModeName = Annotated[
    str | None,
    Query(
        description="a mode listed by GET /modes, such as `ref`, `bon` or `vbon`; default: the server's"
    ),
]
PolicyName = Annotated[
    str | None,
    Query(description="policy that a strategy draws from, such as `vbon`; default: `ref`"),
]


@router.post(
    "/generate", responses=AT_WORK | EVENT_STREAM, response_model=GenerateAnswer | BatchAnswer
)
async def post_generate(
    body: GenerateRequest,
    request: Request,
    mode: ModeName = None,
    policy: PolicyName = None,
    generations: Generations = None,
) -> Response:
    """Answer a prompt, several prompts, or a chat.

    `mode=bon` draws `n` candidates from the reference policy and returns the one with the highest
    reward. `mode=vbon` draws one sample of the distilled checkpoint, and `mode=ref` one of the reference
    policy. Other modes choose by other rules and have settings of their own. With `policy=vbon` they draw
    from another policy than the reference.

    With `stream`, the response consists of server-sent events: `token` events for single-sample modes,
    `candidate` and `progress` events for the others, and then one `answer` or one `error`, whose data are
    the JSON that a request without `stream` gets.
    """
    _reject_unknown_parameters(request)
    plan = make_plan(
        get_runtime(request), mode, body, get_request_id(request), policy, generations=generations
    )
    check_gold(plan)
    if body.stream:
        return await open_stream(
            request,
            native_messages(plan),
            lambda error: event("error", stream_error(request, error)),
        )
    return json_of(await run_while_connected(request, generate(plan)))


def _reject_unknown_parameters(request: Request) -> None:
    for name in request.query_params:
        if name not in {"mode", "policy"}:
            raise InvalidInputError(
                f"unknown query parameter {name!r}; this route has mode and policy", field=name
            )
