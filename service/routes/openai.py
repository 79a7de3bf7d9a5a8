"""``/v1``: OpenAI's API, with each mode as a model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from fastapi import APIRouter, Request, Response

from service.generation.openai_models import find_model, list_models, parse_model
from service.generation.openai_response import answer_all, chat_completion, completion
from service.generation.openai_stream import chunks
from service.generation.plan import make_plan
from service.generation.references import check_limit
from service.generation.token_texts import TokenPlan
from service.generation.tool_calls import check_tools
from service.http.disconnect import run_while_connected
from service.http.responses import json_of
from service.http.sse import event, open_stream
from service.routes.dependencies import Generations, RuntimeDep
from service.routes.errors import stream_error
from service.routes.request_state import get_request_id, get_runtime, remember_model
from service.runtime.prompt import PromptResult
from service.schemas import AT_WORK, EVENT_STREAM, errors
from service.schemas.openai_requests import ChatRequest, CompletionRequest
from service.schemas.openai_responses import ChatCompletion, Completion, ModelList, OpenAiModel

router = APIRouter(prefix="/v1", tags=["openai"])

_ANSWERS = AT_WORK | errors(400) | EVENT_STREAM

B = TypeVar("B", CompletionRequest, ChatRequest)
A = TypeVar("A", Completion, ChatCompletion)


@router.post("/completions", responses=_ANSWERS, response_model=Completion)
async def post_completions(
    body: CompletionRequest, request: Request, generations: Generations = None
) -> Response:
    """Continue one text or several. `model` names a mode; `best_of` is its N."""
    return await _respond(body, request, generations, completion)


@router.post("/chat/completions", responses=_ANSWERS, response_model=ChatCompletion)
async def post_chat_completions(
    body: ChatRequest, request: Request, generations: Generations = None
) -> Response:
    """Continue a chat. `model` names a mode; `best_of` is its N."""
    return await _respond(body, request, generations, chat_completion)


@router.get("/models")
async def get_models(runtime: RuntimeDep) -> ModelList:
    """List every mode. `MODE@POLICY` is accepted as a model too, but not listed."""
    return list_models(runtime)


@router.get("/models/{model}", responses=errors(404, 422))
async def get_model(model: str, runtime: RuntimeDep) -> OpenAiModel:
    """One mode, also in the form `MODE@POLICY`."""
    return find_model(runtime, model)


def _plan(
    body: CompletionRequest | ChatRequest, request: Request, generations: int | None
) -> TokenPlan:
    runtime = get_runtime(request)
    remember_model(request, body.model)
    name, policy = parse_model(runtime, body.model)
    if body.best_of is not None:
        check_limit("best_of", body.best_of, runtime.settings.limits.max_n)
    plan = make_plan(
        runtime,
        name,
        body.to_native(),
        get_request_id(request),
        policy,
        answers=body.n or 1,
        generations=generations,
    )
    if isinstance(body, ChatRequest):
        check_tools(plan, body.tool_use)
    return TokenPlan.of(plan)


async def _respond(
    body: B,
    request: Request,
    generations: int | None,
    to_openai: Callable[[TokenPlan, B, Sequence[PromptResult]], Awaitable[A]],
) -> Response:
    """Answer as a stream, or as one response that ``to_openai`` composes."""
    plan = _plan(body, request, generations)
    if body.stream:
        return await open_stream(
            request, chunks(plan, body), lambda error: event(None, stream_error(request, error))
        )
    results = await run_while_connected(request, answer_all(plan))
    return json_of(await to_openai(plan, body, results))
