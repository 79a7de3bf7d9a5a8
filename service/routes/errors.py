"""The one place where errors become HTTP answers; routes hold no try/except."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from http import HTTPStatus

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
from vbon.errors import (
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
    VbonError,
)

logger = logging.getLogger(__name__)
_throttled = ThrottledLog(logger)

# First match wins, so subclasses come before their bases. (error, status, type on the wire)
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
    (ClientDisconnectedError, 499, "client_disconnected"),
    (VbonError, 500, "internal_error"),
)
_RETRY_AFTER_S = {503: 5.0}
MOST_PROBLEMS, MOST_CHARACTERS = 20, 4000  # that an answer lists, and takes for it


def add_error_handlers(app: FastAPI) -> None:
    """Install the handlers."""
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for error_type, _, _ in TABLE:
        app.add_exception_handler(error_type, _on_error)


class UnforeseenErrorMiddleware:
    """Answers what nobody foresaw, so that the middleware around it sees that answer too.

    FastAPI's handler of ``Exception`` is outside of all middleware: it would answer without the request's id
    and the security headers, and let uvicorn log the traceback once more.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_and_see(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except Exception as error:  # whatever it is, the client is told, and the log
            request, failure = Request(scope), _failure_of(error)
            if begun:
                _count(request, failure)
                raise  # the server cuts the connection: half an answer must not pass for a whole one
            await _answer(request, failure)(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way to the client."""

    status: int
    kind: str
    message: str
    param: str | None = None
    code: int | str | None = None
    retry_after_s: float | None = None

    def body(self, request: Request) -> dict[str, object]:
        """OpenAI's shape."""
        return {
            "error": {
                "message": _sayable(self.message),
                "type": self.kind,
                "param": self.param,
                "code": self.status if self.code is None else self.code,
                "request_id": get_request_id(request),
            }
        }


def _sayable(message: str) -> str:
    """As UTF-8 has it, which JSON's \\ud800 is not; without the middle of what was sent to be repeated."""
    message = message.encode("utf-8", "backslashreplace").decode()
    if len(message) <= MOST_CHARACTERS:
        return message
    half = MOST_CHARACTERS // 2
    return f"{message[:half]} ... {message[-half:]}"


def tell(request: Request, error: Exception) -> dict[str, object]:
    """Count and log an error that strikes when the status has long been sent; its JSON."""
    failure = _failure_of(error)
    _count(request, failure)
    return failure.body(request)


def _failure_of(error: Exception) -> Failure:
    known = next(((s, k) for t, s, k in TABLE if isinstance(error, t)), None)
    if known is None:
        logger.error("unexpected error", exc_info=error)
        return Failure(500, "internal_error", f"unexpected {type(error).__name__}; see the log")
    status, kind = known
    if isinstance(error, NotReadyError):  # probes ask time and again, and the cause has been logged
        logger.debug("%s: %s", kind, error)
    elif status >= 500:
        _throttled.warn(f"{kind}: {error}")
    retry_after_s = _RETRY_AFTER_S.get(status)
    if isinstance(error, OverloadedError):
        retry_after_s = error.retry_after_s
    return Failure(
        status,
        kind,
        str(error),
        param=error.field if isinstance(error, InvalidInputError) else None,
        code="model_not_found" if isinstance(error, ModelNotFoundError) else None,
        retry_after_s=retry_after_s,
    )


def _count(request: Request, failure: Failure) -> None:
    record_error(failure.kind)
    if request.method != "POST":
        return
    runtime = get_runtime(request)
    named = request.query_params.get("mode", runtime.settings.default_mode)
    if request.url.path.startswith("/v1/"):
        named = asked_model(request).partition("@")[0]
    runtime.count_error(named, failure.kind)


def _answer(request: Request, failure: Failure) -> JSONResponse:
    _count(request, failure)
    headers = {}
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(failure.retry_after_s))
    return JSONResponse(failure.body(request), status_code=failure.status, headers=headers)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    return _answer(request, _failure_of(error))


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    lines, first = [], None
    problems = error.errors()
    for problem in problems[:MOST_PROBLEMS]:
        place = [str(part) for part in problem["loc"]]
        if problem["type"] == "json_invalid":
            first = "body"
            at = f"character {place[-1]}"
            lines.append(f"the body is not valid JSON: {problem['ctx']['error']} (at {at})")
            continue
        name = ".".join(place[1:]) or place[0]
        first = first or name
        given = problem.get("input")
        shown = "" if isinstance(given, dict | list) or given is None else f" (got {given!r:.60})"
        lines.append(f"{name}: {problem['msg']}{shown}")
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"and {len(problems) - MOST_PROBLEMS} more")
    message = "; ".join(lines)
    if isinstance(error.body, dict) and isinstance(error.body.get("model"), str):
        remember_model(request, error.body["model"])
    return _answer(request, Failure(422, "invalid_input", message, param=first))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's, of a body that Python's JSON reader gave up on
        return _answer(request, Failure(422, "invalid_input", _unreadable(error), param="body"))
    kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    response = _answer(request, Failure(error.status_code, kind, str(error.detail)))
    response.headers.update(error.headers or {})
    if error.status_code == 405:  # Starlette names the methods of the first route alone
        response.headers["allow"] = ", ".join(sorted(_methods_at(request)))
    return response


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
