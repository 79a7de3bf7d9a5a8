"""The mapping from exceptions to HTTP error responses. Routes contain no try/except."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.context.request_context import record_error
from service.http.disconnect import ClientDisconnectedError
from service.observability.throttled_log import ThrottledLog
from service.routes.request_state import asked_model, get_request_id, get_runtime, remember_model
from service.runtime.runtime import SCORE
from vbon.errors import (
    CONTEXT_LENGTH_EXCEEDED,
    BusyError,
    CandidateCountError,
    CheckpointError,
    EngineDeadError,
    EngineError,
    ForbiddenError,
    InvalidInputError,
    ModelNotFoundError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    PromptTooLongError,
    ReloadRefusedError,
    RequestTimeoutError,
    RewardDeadError,
    RewardError,
    ShuttingDownError,
    StoreError,
    VbonError,
)

logger = logging.getLogger(__name__)
# Apart, so that warnings do not keep tracebacks out of the log.
_throttled, _unexpected = ThrottledLog(logger), ThrottledLog(logger)

# (exception, status, type in the response). The first match wins, so subclasses precede their bases.
TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (PromptTooLongError, 422, "prompt_too_long"),
    (ModelNotFoundError, 404, "model_not_found"),
    (ReloadRefusedError, 422, "reload_refused"),
    (InvalidInputError, 422, "invalid_input"),
    (ForbiddenError, 403, "forbidden"),
    (NotFoundError, 404, "not_found"),
    (OverloadedError, 429, "overloaded"),
    (NotReadyError, 503, "not_ready"),
    (ShuttingDownError, 503, "shutting_down"),
    (BusyError, 409, "busy"),
    (EngineDeadError, 503, "engine_dead"),
    (RewardDeadError, 503, "reward_dead"),
    (CandidateCountError, 500, "candidate_count"),
    (EngineError, 500, "engine_error"),
    (RewardError, 502, "reward_error"),
    (RequestTimeoutError, 504, "timeout"),
    (CheckpointError, 500, "checkpoint_error"),
    (StoreError, 503, "store_unavailable"),
    (ClientDisconnectedError, 499, "client_disconnected"),
    (VbonError, 500, "internal_error"),
)
_RETRY_AFTER_S = {503: 5.0}
MOST_PROBLEMS = 20  # validation problems that one message lists
MOST_CHARACTERS = 4000  # of one message


def add_error_handlers(app: FastAPI) -> None:
    """Register a handler for every exception in :data:`TABLE`, and for FastAPI's own."""
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for error_type, _, _ in TABLE:
        app.add_exception_handler(error_type, _on_error)


class UnhandledErrorMiddleware:
    """Turns unhandled exceptions into a 500 response inside the middleware stack.

    FastAPI's handler for ``Exception`` runs outside of all middleware: its response would lack the
    request id and the security headers, and uvicorn would log the traceback a second time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and respond if it raises."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:  # any exception must give the client a response
            request, failure = Request(scope), _failure_of(error)
            if started:
                _count(request, failure)
                raise  # makes the server cut the connection, so that half a response is not taken for all
            await _respond(request, failure)(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Failure:
    """One error response.

    Attributes:
        kind: its type on the wire.
        param: the request field at fault.
        code: OpenAI's code; ``None`` means the status.
        retry_after_s: value of the Retry-After header.
    """

    status: int
    kind: str
    message: str
    param: str | None = None
    code: int | str | None = None
    retry_after_s: float | None = None

    def body(self, request: Request) -> dict[str, object]:
        """The JSON body, in OpenAI's shape."""
        return {
            "error": {
                "message": _printable(self.message),
                "type": self.kind,
                "param": self.param,
                "code": self.status if self.code is None else self.code,
                "request_id": get_request_id(request),
            }
        }


def _printable(message: str) -> str:
    """The message as valid UTF-8, without its middle if it is too long.

    A message may repeat input, and JSON input may hold lone surrogates such as ``\\ud800``, which UTF-8
    cannot represent.
    """
    message = message.encode("utf-8", "backslashreplace").decode()
    if len(message) <= MOST_CHARACTERS:
        return message
    half = MOST_CHARACTERS // 2
    return f"{message[:half]} ... {message[-half:]}"


def stream_error(request: Request, error: Exception) -> dict[str, object]:
    """The JSON of an error that occurs after the response has started; counts and logs it."""
    failure = _failure_of(error)
    _count(request, failure)
    return failure.body(request)


def _failure_of(error: Exception) -> Failure:
    """The response for an exception; logs it if the service is at fault."""
    known = next(((s, k) for t, s, k in TABLE if isinstance(error, t)), None)
    if known is None:
        _unexpected.unexpected("unexpected error", error)
        return Failure(500, "internal_error", f"unexpected {type(error).__name__}; see the log")
    status, kind = known
    if isinstance(
        error, NotReadyError
    ):  # probes cause many of these, and the cause has been logged
        logger.debug("%s: %s", kind, error)
    elif status >= 500:
        _throttled.warn(f"{kind}: {getattr(error, 'log_text', None) or error}")
    retry_after_s = _RETRY_AFTER_S.get(status)
    if isinstance(error, OverloadedError):
        retry_after_s = error.retry_after_s
    return Failure(
        status,
        kind,
        str(error),
        param=error.field if isinstance(error, InvalidInputError) else None,
        code=_code_of(error),
        retry_after_s=retry_after_s,
    )


def _code_of(error: Exception) -> str | None:
    """OpenAI's code, for errors that its clients handle in a way of their own."""
    if isinstance(error, ModelNotFoundError):
        return "model_not_found"
    return CONTEXT_LENGTH_EXCEEDED if isinstance(error, PromptTooLongError) else None


def _count(request: Request, failure: Failure) -> None:
    record_error(failure.kind)
    if request.method != "POST":
        return
    runtime = get_runtime(request)
    mode = request.query_params.get("mode", runtime.settings.default_mode)
    if request.url.path == "/v1/score":
        mode = SCORE
    elif request.url.path.startswith("/v1/"):
        mode = asked_model(request).partition("@")[0]
    runtime.count_error(mode, failure.kind)


def _respond(request: Request, failure: Failure) -> JSONResponse:
    _count(request, failure)
    if failure.code == CONTEXT_LENGTH_EXCEEDED and request.url.path.startswith("/v1/"):
        failure = replace(
            failure, status=400
        )  # clients look at this code only where OpenAI sends it
    headers = {}
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(failure.retry_after_s))
    return JSONResponse(failure.body(request), status_code=failure.status, headers=headers)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    return _respond(request, _failure_of(error))


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, dict) and isinstance(error.body.get("model"), str):
        remember_model(request, error.body["model"])
    message, param = _describe(error)
    return _respond(request, Failure(422, "invalid_input", message, param=param))


def _describe(error: RequestValidationError) -> tuple[str, str | None]:
    """The message for an invalid request, and the first field at fault."""
    lines, first = [], None
    problems = error.errors()
    for problem in problems[:MOST_PROBLEMS]:
        place = [str(part) for part in problem["loc"]]
        if problem["type"] == "json_invalid":
            first = "body"
            at = f"character {place[-1]}"
            lines.append(f"the body is not valid JSON: {problem['ctx']['error']} (at {at})")
            continue
        missing = problem["type"] == "missing"
        name = _field_at(problem["loc"][1:], error.body, missing=missing) or place[0]
        first = first or name
        if isinstance(error.body, bytes):  # FastAPI leaves other types of content unparsed
            lines.append(
                "the body was not read as JSON; send the header content-type: application/json"
            )
            continue
        given = problem.get("input")
        shown = "" if isinstance(given, dict | list) or given is None else f" (got {given!r:.60})"
        lines.append(f"{name}: {_problem(problem)}{shown}")
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"and {len(problems) - MOST_PROBLEMS} more")
    return "; ".join(lines), first


def _problem(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "this server has no such field; leave it out (GET /openapi.json lists all fields)"
    return str(problem["msg"]).removeprefix("Value error, ")


def _field_at(place: Sequence[str | int], body: Any, *, missing: bool) -> str:
    """The path of a field as the client wrote it, without pydantic's names for the forms of a value."""
    found, at = [], body
    for i, part in enumerate(place):
        absent = missing and i == len(place) - 1
        if isinstance(at, dict) and (part in at or absent):
            found.append(part)
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int) and 0 <= part < len(at):
            found.append(part)
            at = at[part]
    return ".".join(map(str, found))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # raised by FastAPI if Python's JSON parser fails on the body
        return _respond(request, Failure(422, "invalid_input", _unreadable(error), param="body"))
    kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = str(error.detail)
    if error.status_code == 404:
        message = _no_route(request.url.path)
    response = _respond(request, Failure(error.status_code, kind, message))
    response.headers.update(error.headers or {})
    if error.status_code == 405:  # Starlette lists only the methods of the first matching route
        response.headers["allow"] = ", ".join(sorted(_methods_at(request)))
    return response


_OPENAI = ("/chat/completions", "/completions", "/models", "/responses", "/embeddings")
_SCORING = ("/score", "/rerank", "/classify", "/pooling", "/get_reward")


def _no_route(path: str) -> str:
    """The message for a path without a route, with a hint for the paths that OpenAI's clients ask for."""
    message = f"there is nothing at {path[:200]}"
    if path.startswith("/v1/v1/"):
        return f"{message}; the base_url of the client ends in /v1 twice"
    if path.startswith("/v1/responses"):
        return (
            f"{message}: this server has no Responses API; use /v1/chat/completions "
            "(client.chat.completions, in LangChain use_responses_api=False, in the AI SDK "
            "openai.chat(MODEL))"
        )
    if path.endswith(_SCORING):
        return f"{message}; texts are scored at POST /v1/score"
    if f"{path}/".startswith("/v1/"):
        return (
            f"{message}; OpenAI's API here is /v1/completions, /v1/chat/completions and /v1/models"
        )
    if path.endswith(_OPENAI):
        return f"{message}; OpenAI's API is below /v1: set the base_url of the client to http://HOST:PORT/v1"
    return message


def _unreadable(error: HTTPException) -> str:
    if isinstance(error.__cause__, UnicodeDecodeError):
        return "the body is not UTF-8"
    if isinstance(error.__cause__, RecursionError):
        return "the body is nested too deeply"
    return f"the body cannot be read as JSON: {error.__cause__ or error.detail}"


def _methods_at(request: Request) -> set[str]:
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return found
